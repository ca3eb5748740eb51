"""Do the checkpoints of a run and a store of features fit the disk, and at which cut would such a store."""

import functools
import math
import os
import shutil
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain import places
from tltrain.errors import WorkdirError
from tltrain.models import freeze, zoo
from tltrain.models.classifier import Classifier, run_frozen
from tltrain.runtime import checkpoint
from tltrain.training import optim, steps

_USABLE = 0.95  # share of what is free that is counted on


class NoSpaceError(WorkdirError):
    """A store does not fit the disk."""


def of_checkpoints(config: ConfigDict, model: Classifier, phase: str) -> tuple[int, int]:
    """Bytes that a checkpoint of `phase` takes, and those stored once for all of them."""
    options, shapes = config[phase], zoo.shapes(model)
    plan = freeze.plan(shapes["params"], model.backbone.stages, options.freeze_until, options.train_only)

    def state(variables):
        tx = optim.make(options, optim.make_schedule(options, 1), plan, plan)
        return steps.create_state(variables["params"], variables["batch_stats"], tx, plan, options.ema)

    return checkpoint.num_bytes(jax.eval_shape(state, shapes), freeze.constants(plan))


def of_run(config: ConfigDict, model: Classifier) -> int:
    """Bytes of the checkpoints of a run at most: those kept, the best, and one that is being written."""
    needed = 0
    for phase in config_lib.PHASES:
        if epochs := config[phase].epochs:
            each, once = of_checkpoints(config, model, phase)
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


def check(
    directory: Path, num_examples: int, shape: tuple[int, ...], dtype: np.dtype, model: Classifier, config: ConfigDict
) -> None:
    """Raises NoSpaceError where `num_examples` rows of `shape` and `dtype` do not fit the disk of `directory`."""
    free = shutil.disk_usage(directory).free
    needed = num_examples * math.prod(shape) * dtype.itemsize
    if needed <= _USABLE * free:
        return
    names = [*model.backbone.stages[:-1], "all"]
    sizes = {name: num_examples * row_bytes(config, model, cut) for cut, name in enumerate(names, 1)}
    fitting = [f"{name!r} ({size / 2**30:.2g} GiB)" for name, size in sizes.items() if size <= _USABLE * free]
    raise NoSpaceError(
        f"the features of {num_examples} images need {needed / 2**30:.2g} GiB and {free / 2**30:.2g} GiB are free; at "
        f"{directory}; free some, set features.dir, or freeze_until to one that fits: {', '.join(fitting) or 'none'}"
    )


def row_bytes(config: ConfigDict, model: Classifier, cut: int) -> int:
    """Bytes that a store at `cut` takes for an image."""
    image = jax.ShapeDtypeStruct((1, *config.data.image_size, 3), np.uint8)
    run = functools.partial(run_frozen, model, start=0, stop=cut)
    activations = jax.eval_shape(run, zoo.shapes(model), x=image)
    return activations.size * (2 if config.features.dtype == "bfloat16" else activations.dtype.itemsize)
