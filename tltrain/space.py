"""Does a store of features fit the disk, and if not, at which cut would it."""

import functools
import math
import shutil
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from tltrain.errors import WorkdirError
from tltrain.models import zoo
from tltrain.models.classifier import Classifier, run_frozen


class NoSpaceError(WorkdirError):
    """A store does not fit the disk."""


def check(
    directory: Path, num_examples: int, shape: tuple[int, ...], dtype: np.dtype, model: Classifier, config: ConfigDict
) -> None:
    """Raises NoSpaceError where `num_examples` rows of `shape` and `dtype` do not fit the disk of `directory`."""
    free = shutil.disk_usage(directory).free
    needed = num_examples * math.prod(shape) * dtype.itemsize
    if needed <= 0.95 * free:
        return
    names = [*model.backbone.stages[:-1], "all"]
    sizes = {name: num_examples * row_bytes(config, model, cut) for cut, name in enumerate(names, 1)}
    fitting = [f"{name!r} ({size / 2**30:.2g} GiB)" for name, size in sizes.items() if size <= 0.95 * free]
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
