"""The backbones a config can name, and the model a config describes."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tltrain import freeze
from tltrain.config import PHASES
from tltrain.errors import ConfigError
from tltrain.models.backbone import Backbone
from tltrain.models.classifier import HEAD_INIT, Classifier
from tltrain.models.mobilenet_v2 import ALPHAS, MobileNetV2

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "mobilenet_v2" if alpha == 1.0 else f"mobilenet_v2_{alpha}": functools.partial(MobileNetV2, alpha=alpha)
    for alpha in ALPHAS
}


def check(config: ConfigDict) -> None:
    """Raises ConfigError where `config` names a backbone or a stage that does not exist, before anything slow."""
    name = config.model.backbone
    if name not in BACKBONES:
        raise ConfigError(f"model.backbone = {name!r} is not known; allowed: {', '.join(BACKBONES)}")
    stages = BACKBONES[name]().stages
    for phase in PHASES:
        try:
            cut = freeze.cut(stages, config[phase].freeze_until)
        except ConfigError as error:
            raise ConfigError(f"{phase}.{error}") from None
        every, epochs = config[phase].unfreeze_every_epochs, config[phase].epochs
        if every and 0 < epochs < (needed := freeze.num_epochs_to(cut, len(stages), every)):
            raise ConfigError(
                f"{phase}.epochs = {epochs} ends before all {len(stages) - cut} stages after freeze_until train; with "
                f"unfreeze_every_epochs = {every}; allowed: from {needed} on, or a later freeze_until"
            )


def create(config: ConfigDict, num_classes: int) -> Classifier:
    """The model of `config.model` for `num_classes`, without variables.

    Raises:
        ConfigError: a sigmoid head for more than two classes.
    """
    if config.model.head == "sigmoid" and num_classes != 2:
        raise ConfigError(
            f"model.head = 'sigmoid' has one unit for two classes, the data has {num_classes}; use 'softmax'"
        )
    backbone = BACKBONES[config.model.backbone](
        dtype=jnp.dtype(config.model.dtype),
        batch_norm_momentum=config.model.batch_norm_momentum,
        axis_name="batch" if config.parallel == "pmap" else None,
    )
    sigmoid = config.model.head == "sigmoid" or (config.model.head == "auto" and num_classes == 2)
    pixels = backbone.pixels if config.data.pixels == "backbone" else config.data.pixels
    return Classifier(backbone, 1 if sigmoid else num_classes, config.model.dropout, pixels)


@functools.cache
def shapes(model: Classifier) -> dict:
    """`{"params": {"backbone", "head"}, "batch_stats": {"backbone"}}` of shapes and dtypes; nothing is computed."""
    size = model.backbone.min_size
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3), jnp.uint8))


def init(model: Classifier, seed: int, pretrained: dict | None) -> dict:
    """Variables of `model`, float32: the head from `seed`, the backbone from `pretrained` or, where None, from `seed`.

    `pretrained` is `{"params": {stage: ...}, "batch_stats": {stage: ...}}`.
    """
    rng = np.random.default_rng(seed)
    expected = shapes(model)
    head = {
        "kernel": HEAD_INIT(jax.random.key(seed), expected["params"]["head"]["kernel"].shape),
        "bias": jnp.zeros(expected["params"]["head"]["bias"].shape),
    }
    if pretrained is None:
        backbone = {name: tree["backbone"] for name, tree in expected.items()}
        pretrained = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _random(path[-1].key, leaf.shape, rng), backbone
        )
    return {
        "params": {"backbone": pretrained["params"], "head": head},
        "batch_stats": {"backbone": pretrained["batch_stats"]},
    }


def _random(name, shape, rng):
    """An initial array by the name of its leaf: kernels by He et al. 2015, norms that change nothing."""
    if name == "kernel":
        return rng.normal(0, np.sqrt(2 / math.prod(shape[:-1])), shape).astype(np.float32)
    return np.full(shape, 1.0 if name in ("scale", "var") else 0.0, np.float32)
