"""One step on all local devices: each computes its part of the batch, and sums are taken over the axis `batch`.

A state is replicated, a batch is divided along its first axis, by `shard_map` over a mesh, or by `pmap`. Batches and
results are global either way.
"""

import collections
import contextlib
import functools
import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import compilation_cache
from jax._src.compilation_cache_interface import CacheInterface
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tltrain.errors import ConfigError
from tltrain.runtime import hosts, pace, sealed, signals

AXIS = "batch"  # over which a batch is divided, and sums are taken


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
    """All devices, of all processes, along `AXIS`; those of a process stand together, in the order of processes.

    Raises:
        ConfigError: they do not divide the batch.
    """
    devices = jax.local_devices() if hosts.count() == 1 else jax.devices()
    if batch_size % len(devices):
        raise ConfigError(
            f"batch_size = {batch_size} cannot be divided over {len(devices)} devices; use a multiple of {len(devices)}"
        )
    return Mesh(np.asarray(devices), (AXIS,))


def local(mesh: Mesh) -> Mesh:
    """The devices of `mesh` that are of this process."""
    if hosts.count() == 1:
        return mesh
    return Mesh(np.asarray([d for d in mesh.devices.flat if d.process_index == hosts.index()]), (AXIS,))


def share(rows: Any) -> Any:
    """The part of `rows` `[B, ...]` of a global batch that is on the devices of this process."""
    size = len(rows) // hosts.count()
    return rows[hosts.index() * size :][:size]


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Of a state, which is on every device, and of a batch, which is divided along its first axis."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree` on every device."""
    return _placed(tree, shardings(mesh)[0])


def put(batch: Any, mesh: Mesh) -> Any:
    """`batch`, a tree of arrays, divided over the devices along its first axis; each process gives its share of it."""
    return _placed(batch, shardings(mesh)[1])


def _placed(tree, sharding):
    if sharding.is_fully_addressable:
        return jax.device_put(jax.tree.map(_own, tree), sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def _own(x):
    """What this process holds of an array that is whole on every device."""
    return x.addressable_data(0) if isinstance(x, jax.Array) and not x.is_fully_addressable else x


def prefetch(batches: Iterable[Any], mesh: Mesh, mode: str, depth: int = 2) -> Iterator[Any]:
    """`batches`, each sent to its devices up to `depth` ahead of its use, so that transfers overlap with compute."""
    waiting: collections.deque[Any] = collections.deque()
    for batch in batches:
        waiting.append(batch if mode == "pmap" else put(batch, mesh))
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def total(tree: Any, axis_name: str | None) -> Any:
    """The sum of `tree` over the devices, within a step; `axis_name` as of `reverse`.

    Integers, which count rows, are summed as float32, exact up to 2**24: all is one collective.
    """
    if _is_alone(axis_name):
        return tree
    summed = jax.lax.psum(jax.tree.map(lambda x: x.astype(jnp.float32), tree), axis_name)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), summed, tree)


def mean(tree: Any, axis_name: str | None) -> Any:
    """As `total`, the mean."""
    return tree if _is_alone(axis_name) else jax.lax.pmean(tree, axis_name)


def _is_alone(axis_name):
    return axis_name is None or jax.lax.axis_size(axis_name) == 1


def reverse(tree: Any, axis_name: str | None) -> Any:
    """The rows of a global batch from last to first, within a step.

    Args:
        tree: of arrays `[B, ...]`: the global batch, or where there is an `axis_name` this device's part of it.
        axis_name: mapped axis along which the batch is divided; None where it is not.
    """
    tree = jax.tree.map(lambda x: x[::-1], tree)
    if _is_alone(axis_name):
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

    `reduced` comes back replicated, `other` too, or divided like the batch where it is `per_example`. Each device calls
    `step` with the whole state, its part of the batch and `axis_name`, over which it has to sum what it reduces. With
    `donate` the memory of `state` is given to the result. A call with other shapes is an error, never a silent
    compilation.
    """
    mapped = functools.partial(step, axis_name=AXIS)
    with pace.at(pace.OTHER), signals.abandonable("compiling"):
        if mode == "pmap":
            return _compile_pmap(mapped, state, batch, mesh, per_example)
        jitted = divided(mapped, mesh, (False, True), (False, per_example), donate_argnums=(0,) if donate else ())
        return jitted.lower(state, batch).compile()


def divided(function: Callable[..., Any], mesh: Mesh, arguments: Any, results: Any, **options: Any) -> Any:
    """`function`, jitted, as each device of `mesh` runs it on its part; `options` are those of `jax.jit`.

    Of `arguments` and `results`, tuples or one, those that are True are divided along their first axis and the others
    whole on every device. Nothing moves between devices but what `function` sums itself, by which it has to see to it
    that what is called whole is the same on all.
    """
    whole, parts = shardings(mesh)
    given, made = (jax.tree.map(lambda is_divided: parts if is_divided else whole, one) for one in (arguments, results))
    in_specs, out_specs = (jax.tree.map(lambda sharding: sharding.spec, one) for one in (given, made))
    in_parts = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(in_parts, in_shardings=given, out_shardings=made, **options)


def _compile_pmap(mapped, state, batch, mesh, per_example):
    count = mesh.size

    def divide(tree):
        return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), tree)

    out_axes = (None, 0 if per_example else None)
    pmapped = jax.pmap(mapped, AXIS, in_axes=(None, 0), out_axes=out_axes, devices=list(mesh.devices.flat))
    compiled = pmapped.lower(state, jax.eval_shape(divide, batch)).compile()

    def run(state, batch):
        reduced, other = compiled(state, divide(batch))
        return reduced, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), other) if per_example else other

    return run
