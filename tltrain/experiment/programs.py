"""The compiled training step of a phase, for the shapes of what it sees."""

import functools
from collections.abc import Callable
from typing import Any

import optax

from tltrain.cache.inputs import SplitInputs, batch_shapes
from tltrain.models import freeze
from tltrain.runtime import parallel
from tltrain.training import steps
from tltrain.training.setup import Setup

Program = Callable[[Any, Any], tuple[Any, Any]]


def train(
    setup: Setup,
    phase: str,
    tx: optax.GradientTransformation,
    now: freeze.Plan,
    inputs: SplitInputs,
    state: steps.TrainState,
) -> Program:
    """`steps.train_step` of `phase` while `now` trains, for states like `state`, which it consumes, and `inputs`."""
    recipe = steps.recipe(setup.config, phase, setup.task, now, inputs.start)
    step = functools.partial(steps.train_step, model=setup.model, tx=tx, recipe=recipe)
    shapes = batch_shapes(setup, inputs.row)
    return parallel.compile_step(step, state, shapes, setup.mesh, setup.config.parallel, donate=True)
