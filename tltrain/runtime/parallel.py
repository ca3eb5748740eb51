"""One step on all local devices: `jit` over a mesh, or the same step under `pmap`.

A state is replicated, a batch is divided along its first axis. Batches and results are global either way.
"""

import collections
import contextlib
import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import compilation_cache
from jax._src.compilation_cache_interface import CacheInterface
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tltrain.errors import ConfigError
from tltrain.runtime import sealed, signals


class _Programs(CacheInterface):
    """Compiled programs in a folder; one that a kill cut short, or that was damaged, is compiled and written again.

    JAX's own cache writes in place, never writes over what is there, and warns of a damaged file in every process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> bytes | None:
        return sealed.read(self._path / key)

    def put(self, key: str, value: bytes) -> None:
        sealed.write(self._path / key, value)


def cache_compilations(folder: Path) -> None:
    """Keeps compiled programs below `folder` for later processes, apart for each kind of processor.

    Where `$JAX_COMPILATION_CACHE_DIR` is set, that folder is used as it is.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        with contextlib.suppress(OSError):  # no folder, no cache: only time is lost
            (folder / processor()).mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder / processor()))
            compilation_cache.get_file_cache = lambda path: (_Programs(Path(path)), path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def processor() -> str:
    """Names the instructions of this processor: a program compiled for others must not be loaded."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def make_mesh(batch_size: int) -> Mesh:
    """All local devices along the axis `batch`.

    Raises:
        ConfigError: they do not divide the batch.
    """
    devices = jax.local_devices()
    if batch_size % len(devices):
        raise ConfigError(
            f"batch_size = {batch_size} cannot be divided over {len(devices)} devices; use a multiple of {len(devices)}"
        )
    return Mesh(np.asarray(devices), ("batch",))


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Of a state, which is on every device, and of a batch, which is divided along its first axis."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree` on every device."""
    return jax.device_put(tree, shardings(mesh)[0])


def put(batch: Any, mesh: Mesh) -> Any:
    """`batch`, a tree of arrays, divided over the devices along its first axis."""
    return jax.device_put(batch, shardings(mesh)[1])


def prefetch(batches: Iterable[Any], mesh: Mesh, mode: str, depth: int = 2) -> Iterator[Any]:
    """`batches`, each sent to its devices up to `depth` ahead of its use, so that transfers overlap with compute."""
    waiting: collections.deque[Any] = collections.deque()
    for batch in batches:
        waiting.append(batch if mode == "pmap" else put(batch, mesh))
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def reverse(tree: Any, axis_name: str | None) -> Any:
    """The rows of a global batch from last to first, within a step.

    Args:
        tree: of arrays `[B, ...]`: the global batch, or where there is an `axis_name` this device's part of it.
        axis_name: mapped axis along which the batch is divided; None where it is not.
    """
    tree = jax.tree.map(lambda x: x[::-1], tree)
    if axis_name is None:
        return tree
    count = jax.lax.axis_size(axis_name)
    return jax.lax.ppermute(tree, axis_name, [(i, count - 1 - i) for i in range(count)])


def compile_step(
    step: Callable[..., tuple[Any, Any]],
    state: Any,
    batch: Any,
    mesh: Mesh,
    mode: str,
    per_example: bool = False,
    donate: bool = False,
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Compiles `step(state, batch) -> (reduced, other)` for arguments shaped as given (arrays or shapes).

    `reduced` comes back replicated, `other` too, or divided like the batch where it is `per_example`. `step` must take
    `axis_name`. With `donate` the memory of `state` is given to the result. A call with other shapes is an error, never
    a silent compilation.
    """
    with signals.abandonable("compiling"):
        if mode == "pmap":
            return _compile_pmap(step, state, batch, mesh, per_example)
        whole, parts = shardings(mesh)
        jitted = jax.jit(
            step,
            in_shardings=(whole, parts),
            out_shardings=(whole, parts if per_example else whole),
            donate_argnums=(0,) if donate else (),
        )
        return jitted.lower(state, batch).compile()


def _compile_pmap(step, state, batch, mesh, per_example):
    count = mesh.size

    def divide(tree):
        return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), tree)

    def mapped(state, batch):
        return step(state, batch, axis_name="batch")

    out_axes = (None, 0 if per_example else None)
    pmapped = jax.pmap(mapped, "batch", in_axes=(None, 0), out_axes=out_axes, devices=list(mesh.devices.flat))
    compiled = pmapped.lower(state, jax.eval_shape(divide, batch)).compile()

    def run(state, batch):
        reduced, other = compiled(state, divide(batch))
        return reduced, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), other) if per_example else other

    return run
