"""Do the checkpoints of a run and a store of features fit the disk, and at which cut would such a store."""

import functools
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain import places
from tltrain.data import packing
from tltrain.data.kinds.kind import Kind
from tltrain.errors import WorkdirError
from tltrain.models import freeze, zoo
from tltrain.models.classifier import run_frozen
from tltrain.runtime import checkpoint
from tltrain.training import optim, steps
from tltrain.training.setup import Setup

_USABLE = 0.95  # share of what is free that is counted on


class NoSpaceError(WorkdirError):
    """A store does not fit the disk."""


def of_checkpoints(setup: Setup, phase: str) -> tuple[int, int]:
    """Bytes that a checkpoint of `phase` takes, and those stored once for all of them."""
    options, shapes, plan = setup.config[phase], zoo.shapes(setup.model), setup.plan(phase)

    def state(variables):
        tx = optim.make(options, optim.make_schedule(options, 1), plan, plan)
        return steps.create_state(variables["params"], variables["batch_stats"], tx, plan, options.ema)

    return checkpoint.num_bytes(jax.eval_shape(state, shapes), freeze.constants(plan, shapes["params"]))


def of_run(setup: Setup) -> int:
    """Bytes of the checkpoints of a run at most: those kept, the best, and one that is being written."""
    needed, config = 0, setup.config
    for phase in config_lib.PHASES:
        if epochs := config[phase].epochs:
            each, once = of_checkpoints(setup, phase)
            kept = config.checkpoint.keep + 2
            needed += once + each * (kept if config.checkpoint.every_steps else min(kept, epochs))
    return needed


def check_checkpoints(workdir: Path, needed: int) -> None:
    """Raises WorkdirError where `needed` bytes of checkpoints, less those that are there, do not fit the disk."""
    with places.writing(workdir, "check the folder, or choose another --workdir"):
        files = [Path(top) / name for top, _, names in os.walk(workdir / "checkpoints") for name in names]
        there = sum(file.stat().st_size for file in files)
        free = shutil.disk_usage(workdir).free
    if needed - there > _USABLE * free:
        raise WorkdirError(
            f"the checkpoints need {_size(needed - there)} and {_size(free)} are free; at {workdir}; free some, choose "
            "another --workdir, or lower checkpoint.keep"
        )


def _size(count):
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def check(setup: Setup, directory: Path, num_examples: int, needed: int) -> None:
    """Raises NoSpaceError where a store of `num_examples` that takes `needed` bytes does not fit `directory`."""
    free = shutil.disk_usage(directory).free
    if needed <= _USABLE * free:
        return
    names = [*setup.model.backbone.stages[:-1], "all"]
    sizes = {name: num_examples * row_bytes(setup, cut) for cut, name in enumerate(names, 1)}
    fitting = [f"{name!r} ({size / 2**30:.2g} GiB)" for name, size in sizes.items() if size <= _USABLE * free]
    raise NoSpaceError(
        f"the features of {num_examples} {setup.data.kind.name} need {needed / 2**30:.2g} GiB and {free / 2**30:.2g} "
        f"GiB are free; at {directory}; free some, set features.dir, or freeze_until to one that fits: "
        f"{', '.join(fitting) or 'none'}"
    )


def row_bytes(setup: Setup, cut: int) -> int:
    """Bytes that a store at `cut` takes for an example, of mean length where these differ."""
    kind, run = setup.data.kind, functools.partial(run_frozen, setup.model, start=0, stop=cut)
    lengths = setup.data.splits["train"].tokens.rows.lengths if kind.ragged else np.ones(1)
    example: Any = _example_of(kind)
    result = as_stored(setup.config, jax.eval_shape(run, zoo.shapes(setup.model), x=example))
    return num_bytes(of_store(result, len(lengths), np.concatenate([[0], np.cumsum(lengths)]))[0]) // len(lengths)


def _example_of(kind: Kind) -> Any:
    """Shapes of a batch of one example of `kind`, the longest."""
    row = kind.shapes()
    if kind.ragged:
        longest = len(jax.tree.leaves(row)[0])
        return packing.shapes_of(row, packing.Shape(longest, 1, longest), 1)
    return jax.tree.map(lambda leaf: leaf.update(shape=(1, *leaf.shape)), row)


def of_store(result: Any, num_examples: int, offsets: np.ndarray | None) -> tuple[Any, np.ndarray | None]:
    """The shapes of the arrays in which `result`, what a program makes of a batch, is stored of all examples.

    With the `offsets` of their tokens where it is of these, None where not.
    """
    if packing.is_packed(result):
        assert offsets is not None, "packed batches are of tokens"
        leaves = {name: leaf for name, leaf in result.items() if name not in packing.LAYOUT}
        return {name: leaf.update(shape=(int(offsets[-1]), *leaf.shape[2:])) for name, leaf in leaves.items()}, offsets
    return jax.tree.map(lambda leaf: leaf.update(shape=(num_examples, *leaf.shape[1:])), result), None


def as_stored(config: ConfigDict, row: Any) -> Any:
    """The shapes of a `row` of activations where it is stored: its floats rounded as `features.dtype` says."""
    if config.features.dtype == "model":
        return row
    rounded = jnp.dtype(config.features.dtype)
    return jax.tree.map(
        lambda leaf: leaf.update(dtype=rounded) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, row
    )


def num_bytes(tree: Any) -> int:
    """Bytes of the arrays or shapes of `tree`."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
