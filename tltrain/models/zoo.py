"""The backbones a config can name, and the model a config describes."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain.config import PHASES
from tltrain.errors import ConfigError
from tltrain.models import (
    densenet,
    efficientnet,
    freeze,
    inception_v3,
    mobilenet_v1,
    mobilenet_v2,
    resnet,
    resnet_v2,
    vgg,
    xception,
)
from tltrain.models.backbone import Backbone
from tltrain.models.classifier import HEAD_INIT, Classifier

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **vgg.VARIANTS,
    **resnet.VARIANTS,
    **resnet_v2.VARIANTS,
    **inception_v3.VARIANTS,
    **xception.VARIANTS,
    **mobilenet_v1.VARIANTS,
    **mobilenet_v2.VARIANTS,
    **densenet.VARIANTS,
    **efficientnet.VARIANTS,
}


def resolved(config: ConfigDict) -> ConfigDict:
    """A copy of `config` in which a `data.image_size` of None is the backbone's own.

    Raises:
        ConfigError: it names a backbone or a stage that does not exist, or images too small for the backbone.
    """
    name = config.model.backbone
    if name not in BACKBONES:
        raise ConfigError(f"model.backbone = {name!r} is not known; allowed: {', '.join(BACKBONES)}")
    backbone = BACKBONES[name]()
    config = config_lib.copied(config)
    if config.data.image_size is None:
        config.data.image_size = backbone.input_size
    if min(config.data.image_size) < backbone.min_size:
        raise ConfigError(
            f"data.image_size = {config.data.image_size}, allowed with {name}: at least {backbone.min_size} pixels each"
        )
    _check_stages(config, backbone.stages)
    return config


def _check_stages(config, stages):
    for phase in PHASES:
        if not config[phase].epochs:
            continue
        try:
            cut = freeze.cut(stages, config[phase].freeze_until)
        except ConfigError as error:
            raise ConfigError(f"{phase}.{error}") from None
        every, epochs = config[phase].unfreeze_every_epochs, config[phase].epochs
        if every and epochs < (needed := freeze.num_epochs_to(cut, len(stages), every)):
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
    found = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3), jnp.uint8))
    return {"batch_stats": {"backbone": {}}} | found  # VGG has no statistics


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
    if name.endswith("kernel"):
        return rng.normal(0, np.sqrt(2 / math.prod(shape[:-1])), shape).astype(np.float32)
    return np.full(shape, 1.0 if name in ("scale", "var") else 0.0, np.float32)
