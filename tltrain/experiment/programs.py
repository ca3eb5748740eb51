"""The compiled training step of a phase, for the shapes of what it sees."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tltrain.cache.inputs import SplitInputs, batch_shapes
from tltrain.data import sources
from tltrain.data.split import Data
from tltrain.models import freeze
from tltrain.models.classifier import Classifier
from tltrain.runtime import parallel
from tltrain.training import steps

Program = Callable[[Any, Any], tuple[Any, Any]]


def train(
    config: ConfigDict,
    name: str,
    model: Classifier,
    data: Data,
    mesh: Mesh,
    tx: optax.GradientTransformation,
    plan: freeze.Plan,
    inputs: SplitInputs,
    state: steps.TrainState,
) -> Program:
    """`steps.train_step` of the phase `name` for states like `state`, which it consumes, and batches of `inputs`."""
    step = functools.partial(
        steps.train_step,
        model=model,
        tx=tx,
        plan=plan,
        start=inputs.start,
        seed=config.seed,
        batch_norm_train=config[name].batch_norm == "train",
        smoothing=config.loss.label_smoothing,
        ema=config[name].ema,
        mixup=config[name].mixup,
        cutmix=config[name].cutmix,
        class_weights=jnp.asarray(sources.class_weights(config.loss.class_weights, data)),
    )
    shapes = batch_shapes(inputs.row, config.batch_size)
    return parallel.compile_step(step, state, shapes, mesh, config.parallel, donate=True)
