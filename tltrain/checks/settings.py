"""The config: what is wrong with it, and what experience says against values that are allowed."""

import contextlib
from collections.abc import Iterator

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain import hub
from tltrain.checks.case import Case
from tltrain.checks.finding import Finding, advice, fine, problem
from tltrain.data import pipeline, sources
from tltrain.errors import ConfigError, TltrainError
from tltrain.models import zoo
from tltrain.models.backbone import Backbone
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import BatchNorm
from tltrain.models.vision_transformer import VisionTransformer

_SMALL_BATCH = 16  # examples; Wu and He 2018 (arXiv 1803.08494, figure 1): below it statistics are poor
_OLD_SHARE = 0.25  # of the old running statistics left at the end, above which BatchNorm has not followed


def repaired(config: ConfigDict) -> ConfigDict:
    """`config` without unknown keys, and with the default for every key whose value is missing or not allowed.

    What the config leaves to the backbone, as the size of images or a stage, is the backbone's; paths are absolute.

    Raises:
        ConfigError: a path is a remote one.
    """
    made, flat = config_lib.default(), config_lib.flatten(config)
    for key, (holds, _) in config_lib.RULES.items():
        if key in flat and holds(flat[key]):
            made.update_from_flattened_dict({key: flat[key]})
    known = zoo.BACKBONES.get(made.model.backbone, zoo.BACKBONES[config_lib.default().model.backbone])
    with contextlib.suppress(TltrainError):  # which `check_names` tells
        zoo.fill_in(made, known())
    return sources.with_absolute_paths(made)


def check_keys(config: ConfigDict) -> Iterator[Finding]:
    """Names, types, ranges and rules between keys."""
    found = config_lib.problems(config)
    for message in found:
        yield problem(message, ConfigError.exit_code)
    if found:
        yield advice("what follows is for a config with the defaults in place of these values")
    else:
        yield fine(f"all {len(config_lib.RULES)} keys are known, and their values are allowed")


def check_names(case: Case) -> Iterator[Finding]:
    """Names of the backbone and of its stages."""
    stages = case.backbone.stages
    yield fine(f"{case.config.model.backbone} has {len(stages)} stages, {stages[0]} to {stages[-1]}")


def check_recipe(case: Case) -> Iterator[Finding]:
    """What experience says about values that are allowed."""
    config, backbone = case.config, case.backbone
    phases = [name for name in config_lib.PHASES if config[name].epochs]
    if isinstance(backbone, ImageBackbone) and min(config.data.image_size) < min(backbone.input_size) / 2:
        yield advice(
            f"data.image_size = {config.data.image_size} is less than half of the {backbone.input_size} that "
            f"{config.model.backbone} was trained on: what it knows of shapes fits larger images"
        )
    if isinstance(backbone, VisionTransformer):
        yield from _positions(config, backbone)
    if phases == ["finetune"] and not hub.is_random(config.model.weights) and config.finetune.freeze_until != "all":
        yield advice(
            "probe.epochs = 0: the gradients of a random head distort pretrained stages; probe first, then fine-tune "
            "(Kumar et al. 2022, arXiv 2202.10054)"
        )
    if phases == list(config_lib.PHASES):
        yield from _rates(case)
    for name in phases:
        yield from _augmentation(name, config)
        yield from _batch_norm(name, case)


def _positions(config, backbone):
    height, width = (side // backbone.patch_size for side in config.data.image_size)
    if (height, width) != (backbone.grid, backbone.grid):
        yield fine(
            f"positions learned for {backbone.grid} x {backbone.grid} patches are resized to the {width} x {height} of "
            "these images"
        )


def _rates(case):
    probe, finetune = case.config.probe, case.config.finetune
    follows = finetune.batch_norm == "inference" and finetune.freeze_until != "all"
    follows = follows and finetune.train_only != "lora"  # whose rates are larger than those of kernels
    if follows and finetune.learning_rate >= probe.learning_rate:
        reason = (
            "with batch_norm = 'inference' the pretrained stages soon stop fitting their stored statistics and collapse"
            if norms(case.backbone)
            else "a rate for a new head soon undoes what pretrained stages know"
        )
        yield advice(
            f"finetune.learning_rate = {finetune.learning_rate:g} is not below probe.learning_rate = "
            f"{probe.learning_rate:g}: {reason}; start at a tenth or less, with warmup_epochs"
        )


def _augmentation(name, config):
    phase, features = config[name], config.features
    stored = features.enabled != "off" and phase.freeze_until is not None
    if phase.augment and phase.epochs > 1 and stored and not features.augment_views:
        yield advice(
            f"{name}.augment = True: the phase runs the frozen stages anew in each of its {phase.epochs} epochs; "
            f"features.augment_views = {min(phase.epochs, 4)} would store so many views of each image instead, "
            f"{name}.augment = False one"
        )
    elif phase.augment and 0 < features.augment_views < phase.epochs:
        yield fine(f"{name} sees {features.augment_views} augmented views of each image in turn, {phase.epochs} epochs")


def _batch_norm(name, case):
    config, phase = case.config, case.config[name]
    if phase.batch_norm != "train" or phase.freeze_until == "all":
        return
    if not (layers := norms(case.backbone)):
        yield fine(f"{name}.batch_norm = 'train' changes nothing: {config.model.backbone} has no BatchNorm")
        return
    if config.batch_size < _SMALL_BATCH:
        yield advice(
            f"{name}.batch_norm = 'train' with batch_size = {config.batch_size}: statistics of so few examples are "
            f"noisy; use {_SMALL_BATCH} or more, or batch_norm = 'inference'"
        )
    steps = phase.epochs * pipeline.num_batches(case.data.splits["train"].num_examples, config.batch_size)
    momentum = max(norm.momentum for norm in layers)
    if momentum**steps > _OLD_SHARE:
        yield advice(
            f"{name}.batch_norm = 'train': after {steps} steps at momentum {momentum:g} the stored statistics, by "
            f"which val is evaluated, are still {momentum**steps:.0%} those of the pretraining; set "
            "model.batch_norm_momentum = 0.9"
        )


def norms(backbone: Backbone) -> list[BatchNorm]:
    """The BatchNorm layers of `backbone` in forward order; nothing is computed."""
    found: list[BatchNorm] = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and context.method_name == "affine":
            found.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(backbone.init, jax.random.key(0), backbone.example())
    return found
