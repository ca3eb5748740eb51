"""The backbones a config can name, and the model a config describes."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
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
    for phase in PHASES:
        try:
            freeze.cut(BACKBONES[name]().stages, config[phase].freeze_until)
        except ConfigError as error:
            raise ConfigError(f"{phase}.{error}") from None


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


def shapes(model: Classifier) -> dict:
    """`{"params": {"backbone", "head"}, "batch_stats": {"backbone"}}` of shapes and dtypes; nothing is computed."""
    size = model.backbone.min_size
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3), jnp.uint8))


def init(model: Classifier, seed: int, pretrained: dict | None) -> dict:
    """Variables of `model`, float32: the head from `seed`, the backbone from `pretrained` or, where None, from `seed`.

    `pretrained` is `{"params": {stage: ...}, "batch_stats": {stage: ...}}`.
    """
    backbone_key, head_key = jax.random.split(jax.random.key(seed))
    expected = shapes(model)
    if pretrained is None:
        size = model.backbone.min_size
        pretrained = jax.jit(model.backbone.init)(backbone_key, jnp.zeros((1, size, size, 3)))
    head = {
        "kernel": HEAD_INIT(head_key, expected["params"]["head"]["kernel"].shape),
        "bias": jnp.zeros(expected["params"]["head"]["bias"].shape),
    }
    return {
        "params": {"backbone": pretrained["params"], "head": head},
        "batch_stats": {"backbone": pretrained["batch_stats"]},
    }
