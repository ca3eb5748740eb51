"""The feature cache: what a frozen prefix makes of each example is computed once, stored, and read back by every run.

A store is a folder named by a hash of all that its numbers depend on: the frozen variables themselves, the pixels'
way to them, and the examples. It appears under its final name when it is whole.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tltrain.data import pipeline
from tltrain.data.sources import Split
from tltrain.download import cache_dir
from tltrain.errors import WorkdirError
from tltrain.models.classifier import Classifier, run_frozen
from tltrain.models.layers import forward_options

FORMAT = 1  # raise it when the numbers of a store change their meaning


@dataclass(frozen=True)
class Store:
    """Activations before stage `cut` of every example: `inputs` `[N, ...]` memory-mapped, `readable` bool `[N]`."""

    cut: int
    inputs: np.ndarray
    readable: np.ndarray


Progress = Callable[[int, int], None]


def directory(config: ConfigDict) -> Path:
    """Where the stores of `config` lie."""
    return Path(config.features.dir) if config.features.dir else cache_dir() / "features"


def ensure(
    config: ConfigDict,
    model: Classifier,
    variables: dict,
    split: Split,
    cut: int,
    corrupt: pipeline.Corrupt,
    base: Store | None,
    progress: Progress,
) -> Store:
    """The store of `split` at `cut`, computed if it is not there yet.

    Args:
        config: of the run.
        model: its classifier.
        variables: `params` and `batch_stats` that hold the frozen stages.
        split: whose examples.
        cut: index of the stage whose inputs are stored; the number of stages for pooled features.
        corrupt: collects unreadable images.
        base: a store of the same split at an earlier cut to start from, or None: from the images.
        progress: called with (done, total) examples.

    Raises:
        DataError: too many unreadable images.
        WorkdirError: the folder cannot be written, or the disk is too full.
    """
    folder = directory(config) / _key(config, model, variables, split, cut)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _extract(folder, config, model, variables, split, cut, corrupt, base, progress)
    except OSError as error:
        raise WorkdirError(
            f"cannot store features; {error}; at {folder.parent}; set features.dir, or features.enabled = 'off'"
        ) from error
    inputs, readable = np.load(folder / "inputs.npy", mmap_mode="r"), np.load(folder / "readable.npy")
    if inputs.dtype == np.uint16:
        inputs = inputs.view(jnp.bfloat16)
    for i in np.flatnonzero(~readable):
        corrupt.add(int(i), "unreadable when its features were computed")
    corrupt.check()
    return Store(cut, inputs, readable)


def _key(config, model, variables, split, cut):
    arrays = hashlib.sha256()
    for stage in model.backbone.stages[:cut]:
        for collection in ("params", "batch_stats"):
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables[collection]["backbone"].get(stage, {})):
                arrays.update(f"{stage}{jax.tree_util.keystr(path)}{leaf.shape}".encode())
                arrays.update(np.asarray(leaf).tobytes())
    facts = {
        "format": FORMAT,
        "backbone": config.model.backbone,
        "arrays": arrays.hexdigest(),
        "cut": cut,
        "pixels": model.pixels,
        "size": tuple(config.data.image_size),
        "resize": config.data.resize,
        "dtype": config.model.dtype,
        "split": split.fingerprint,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _extract(folder, config, model, variables, split, cut, corrupt, base, progress):
    run = _compiled(model, base.cut if base else 0, cut)
    variables = jax.device_put({name: variables[name] for name in ("params", "batch_stats")})
    index, mask = pipeline.rows(split.num_examples, config.batch_size)
    if base:
        batches = pipeline.from_arrays(base.inputs, base.readable, split.labels, index, mask)
    else:
        batches = pipeline.from_images(split, index, mask, config.data.image_size, config.data.resize, corrupt)
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    inputs: Any = None
    readable = np.ones(split.num_examples, bool)
    done = 0
    for batch in batches:
        activations = np.asarray(run(variables, x=jnp.asarray(batch["inputs"])))
        if activations.dtype == jnp.bfloat16:
            activations = activations.view(np.uint16)  # the file format of NumPy does not know bfloat16
        if inputs is None:
            shape = (split.num_examples, *activations.shape[1:])
            _check_space(part, int(np.prod(shape)) * activations.itemsize)
            inputs = np.lib.format.open_memmap(part / "inputs.npy", "w+", activations.dtype, shape)
        count = min(len(activations), split.num_examples - done)
        inputs[done : done + count] = activations[:count]
        readable[done : done + count] = batch["mask"][:count]
        done += count
        progress(done, split.num_examples)
    inputs.flush()
    np.save(part / "readable.npy", readable)
    for name in ("inputs.npy", "readable.npy"):
        with (part / name).open("rb") as file:
            os.fsync(file.fileno())
    part.rename(folder)


@functools.cache
def _compiled(model: Classifier, start: int, cut: int) -> Callable[..., jax.Array]:
    """`run_frozen`, compiled once for all splits."""
    return jax.jit(functools.partial(run_frozen, model, start=start, stop=cut), compiler_options=forward_options())


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OSError(f"{num_bytes / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are free")
