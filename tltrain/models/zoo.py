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
from tltrain.data.kinds.kind import Kind
from tltrain.errors import ConfigError
from tltrain.models import (
    adapters,
    bert_variants,
    clip,
    convnext,
    densenet,
    dinov2,
    efficientnet,
    efficientnet_v2,
    freeze,
    inception_resnet_v2,
    inception_v3,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    nasnet,
    resnet,
    resnet_v2,
    siglip,
    vgg,
    vit,
    xception,
)
from tltrain.models.backbone import Backbone
from tltrain.models.classifier import HEAD_INIT, Classifier
from tltrain.models.layers import LAYER_SCALE
from tltrain.models.neighbors import Bank

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **vgg.VARIANTS,
    **resnet.VARIANTS,
    **resnet_v2.VARIANTS,
    **inception_v3.VARIANTS,
    **inception_resnet_v2.VARIANTS,
    **xception.VARIANTS,
    **mobilenet_v1.VARIANTS,
    **mobilenet_v2.VARIANTS,
    **mobilenet_v3.VARIANTS,
    **densenet.VARIANTS,
    **nasnet.VARIANTS,
    **efficientnet.VARIANTS,
    **vit.VARIANTS,
    **dinov2.VARIANTS,
    **clip.VARIANTS,
    **siglip.VARIANTS,
    **efficientnet_v2.VARIANTS,
    **convnext.VARIANTS,
    **bert_variants.VARIANTS,
}


def resolved(config: ConfigDict) -> ConfigDict:
    """A copy of `config` in which keys that leave something to the backbone, as `data.image_size`, have its values.

    Raises:
        ConfigError: it names a backbone or a stage that does not exist, or what examples of its kind cannot have.
    """
    backbone = _backbone(config)
    config = config_lib.copied(config)
    _check_kind(config, backbone.kind)
    fill_in(config, backbone)
    _check_stages(config, backbone.configured(config))
    return config


def fill_in(config: ConfigDict, backbone: Backbone) -> None:
    """Writes into `config` what it leaves to `backbone`, and turns off what means nothing for examples of its kind."""
    if not backbone.kind.augments:
        for phase in PHASES:
            config[phase].augment = False
    backbone.resolve(config)
    stages = backbone.configured(config).stages
    for phase in PHASES:
        config[phase].freeze_until = freeze.named(stages, config[phase].freeze_until)


def kind(config: ConfigDict) -> Kind:
    """What the examples of a resolved `config` are: what its backbone takes.

    Raises:
        WeightsError: files of the weights do not belong together, see `Backbone.check`.
    """
    backbone = _backbone(config)
    made = backbone.kind.of(config)
    backbone.configured(config).check(made)
    return made


def _backbone(config):
    name = config.model.backbone
    if name not in BACKBONES:
        raise ConfigError(f"model.backbone = {name!r} is not known; allowed: {', '.join(BACKBONES)}")
    return BACKBONES[name]()


def _check_kind(config, kind):
    """Raises where a key has a value that other kinds know."""
    given, standard = (config_lib.flatten(c) for c in (config, config_lib.default()))
    for other in {make().kind for make in BACKBONES.values()} - {kind}:
        for key in (key for key in given if key.startswith(other.keys) and not key.startswith(kind.keys)):
            if given[key] != standard[key]:
                raise ConfigError(
                    f"{key} = {given[key]!r}, allowed: {standard[key]!r} with {config.model.backbone}, which takes "
                    f"{kind.name}; it is a key of {other.name}"
                )


def _check_stages(config, backbone):
    stages = backbone.stages
    for phase in PHASES:
        if not config[phase].epochs:
            continue
        try:
            cut = freeze.cut(stages, config[phase].freeze_until)
            if config[phase].train_only == "lora":
                adapters.check(_backbone_shapes(backbone), stages[cut:], config[phase].lora.targets)
        except ConfigError as error:
            raise ConfigError(f"{phase}.{error}") from None
        every, epochs = config[phase].unfreeze_every_epochs, config[phase].epochs
        if every and epochs < (needed := freeze.num_epochs_to(cut, len(stages), every)):
            raise ConfigError(
                f"{phase}.epochs = {epochs} ends before all {len(stages) - cut} stages after freeze_until train; with "
                f"unfreeze_every_epochs = {every}; allowed: from {needed} on, or a later freeze_until"
            )


@functools.cache
def _backbone_shapes(backbone):
    return jax.eval_shape(backbone.init, jax.random.key(0), backbone.example())["params"]


def create(config: ConfigDict, num_outputs: int, bank: Bank | None = None) -> Classifier:
    """The model of `config.model` with a head of `num_outputs` units, or of a `bank`, without variables."""
    backbone = _backbone(config).configured(config)
    return Classifier(backbone, num_outputs, config.model.dropout, bank)


def num_features(model: Classifier) -> int:
    """The number C of pooled features `[B, C]`."""
    head = shapes(model)["params"]["head"]
    return head["features"].shape[1] if model.bank else head["kernel"].shape[0]


@functools.cache
def shapes(model: Classifier) -> dict:
    """`{"params": {"backbone", "head"}, "batch_stats": {"backbone"}}` of shapes and dtypes; nothing is computed."""
    found = jax.eval_shape(model.init, jax.random.key(0), model.backbone.example())
    return {"batch_stats": {"backbone": {}}} | found  # VGG and ConvNeXt have no statistics


def init(model: Classifier, seed: int, pretrained: dict | None) -> dict:
    """Variables of `model`, float32: the head from `seed`, the backbone from `pretrained` or, where None, from `seed`.

    A head of nearest neighbours has none yet. `pretrained` is `{"params": {stage: ...}, "batch_stats": {stage: ...}}`.
    """
    rng = np.random.default_rng(seed)
    expected = shapes(model)
    head = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), expected["params"]["head"])
    if not model.bank:
        head["kernel"] = HEAD_INIT(jax.random.key(seed), head["kernel"].shape)
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
    """An initial array by the name of its leaf: kernels by He et al. 2015, norms that change nothing.

    Embeddings are small, as in `modeling_bert.py`, for what follows normalises their sum; so is what blocks add.
    """
    if name in ("embedding", "value"):
        return rng.normal(0, 0.02, shape).astype(np.float32)
    if name == "gamma":
        return np.full(shape, LAYER_SCALE, np.float32)
    if name.endswith("kernel"):
        return rng.normal(0, np.sqrt(2 / math.prod(shape[:-1])), shape).astype(np.float32)
    return np.full(shape, 1.0 if name in ("scale", "var") else 0.0, np.float32)
