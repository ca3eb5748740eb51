"""The compiled training step of a phase, for the shapes of what it sees."""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import optax

from tltrain.cache.inputs import SplitInputs, batch_shapes
from tltrain.models import freeze
from tltrain.models.classifier import Shapes
from tltrain.runtime import parallel, signals
from tltrain.training import steps
from tltrain.training.setup import Setup

Program = Callable[[Any, Any], tuple[Any, Any]]


class Steps:
    """The training step of a phase: compiled for the shapes of batches that are foreseen, and others when they come."""

    def __init__(self, compiled: Callable[[Shapes], Program], foreseen: Sequence[Shapes]) -> None:
        self._compile = compiled
        with signals.abandonable("compiling"), ThreadPoolExecutor(os.cpu_count()) as pool:
            self.programs = dict(zip(foreseen, pool.map(compiled, foreseen), strict=True))

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """As `steps.train_step`; consumes `state`."""
        shapes = Shapes.of(batch)
        if shapes not in self.programs:
            self.programs[shapes] = self._compile(shapes)
        return self.programs[shapes](state, batch)


def train(
    setup: Setup,
    phase: str,
    tx: optax.GradientTransformation,
    now: freeze.Plan,
    inputs: SplitInputs,
    state: steps.TrainState,
) -> Steps:
    """`steps.train_step` of `phase` while `now` trains, for states like `state`, which it consumes, and `inputs`."""
    recipe = steps.recipe(setup.config, phase, setup.task, now, inputs.start)
    model = setup.model.clone(backbone=setup.model.backbone.clone(remat=setup.config[phase].remat))
    step = functools.partial(steps.train_step, model=model, tx=tx, recipe=recipe)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)

    def compiled(shapes: Shapes) -> Program:
        return parallel.compile_step(step, like, shapes.tree, setup.mesh, setup.config.parallel, donate=True)

    return Steps(compiled, [Shapes.of(batch_shapes(setup, one)) for one in inputs.shapes(0)])
