"""The phases as a run would do them, without doing them: what each sees, the stores that takes, its compiled steps."""

import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain.cache import features, forward, space
from tltrain.cache.inputs import Inputs, SplitInputs
from tltrain.checks.case import Case
from tltrain.checks.finding import NotThereYetError
from tltrain.data import pipeline
from tltrain.data.preprocess import Augment
from tltrain.errors import WeightsError
from tltrain.experiment import evaluation, programs
from tltrain.models import freeze, zoo
from tltrain.runtime.workdir import Clock
from tltrain.training import optim, steps


class Due(NamedTuple):
    """A store that a run would compute: stages `[start, cut)` over `split`, `num_views` times for augmented images."""

    split: str
    start: int
    cut: int
    num_views: int
    augment: Augment | None
    num_bytes: int


class Prepared(NamedTuple):
    """A phase: what it sees of train and val, its state as shapes, its compiled step, and the seconds of compiling."""

    name: str
    train: SplitInputs
    val: SplitInputs
    plan: freeze.Plan
    tx: Any
    state: steps.TrainState
    train_step: Any
    seconds: float


@functools.cache
def inputs_of(case: Case) -> Inputs:
    """What decides for a run whether a phase sees images."""
    return Inputs(case.config, case.model, case.data, case.mesh, Clock(), lambda: False)


def names(case: Case) -> list[str]:
    """The phases that are not skipped."""
    return [name for name in config_lib.PHASES if case.config[name].epochs]


@functools.cache
def prepare(case: Case, name: str) -> Prepared:
    """Compiles what phase `name` runs, once; gradual unfreezing as it is in the end."""
    config, model, phase = case.config, case.model, case.config[name]
    shapes = zoo.shapes(model)
    plan = freeze.plan(shapes["params"], model.backbone.stages, phase.freeze_until, phase.train_only)
    per_epoch = pipeline.num_batches(case.data.splits["train"].num_examples, config.batch_size)
    tx = optim.make(phase, optim.make_schedule(phase, per_epoch), plan, plan)
    state = jax.eval_shape(lambda v: steps.create_state(v["params"], v["batch_stats"], tx, plan, phase.ema), shapes)
    train, val = (_seen(case, name, split, plan.cut) for split in ("train", "val"))
    started = time.perf_counter()
    train_step = programs.train(config, name, model, case.data, case.mesh, tx, plan, train, state)
    evaluation.prepare(model, val, config, case.mesh)
    return Prepared(name, train, val, plan, tx, state, train_step, time.perf_counter() - started)


def prepared(case: Case) -> list[Prepared]:
    """Every phase that is not skipped."""
    return [prepare(case, name) for name in names(case)]


def _seen(case, name, split, cut) -> SplitInputs:
    """As `Inputs.of_phase` gives it, but that nothing is computed, so stored activations have no batches."""
    train, inputs = split == "train", inputs_of(case)
    if inputs.why_images(name, train):
        return inputs.images(split, train and case.config[name].augment)
    result = forward.result(program(case, 0, cut))
    dtype = jnp.dtype(jnp.bfloat16) if case.config.features.dtype == "bfloat16" else result.dtype
    return SplitInputs(lambda epoch, first: iter(()), cut, jax.ShapeDtypeStruct(result.shape[1:], dtype))


def program(case: Case, start: int, stop: int) -> forward.Program:
    """The frozen stages `[start, stop)` for a batch."""
    row: Any = jax.ShapeDtypeStruct((1, *case.config.data.image_size, 3), np.uint8)
    if start:
        row = forward.result(program(case, 0, start))
    shape = (case.config.batch_size, *row.shape[1:])
    return forward.Program(case.model, start, stop, shape, np.dtype(row.dtype), case.mesh)


def due_stores(case: Case) -> list[Due]:
    """The stores that a run would compute, in its order; those that are there already are left out."""
    found = dict.fromkeys(one for name in names(case) for split in ("train", "val") for one in _due(case, name, split))
    if "test" in case.data.splits:  # of one phase, whichever is better
        found |= dict.fromkeys(_due(case, names(case)[-1], "test"))
    return list(found)


def _due(case, name, split) -> Iterator[Due]:
    config, model, inputs = case.config, case.model, inputs_of(case)
    cut = freeze.cut(model.backbone.stages, config[name].freeze_until)
    augment = split == "train" and config[name].augment
    if inputs.why_images(name, split == "train"):
        return
    count = len(case.data.splits[split].ids)
    if augment:
        random = augment_of(config)
        views = [v for v in range(config.features.augment_views) if not _is_stored(case, split, cut, random, v)]
        if views:
            yield Due(split, 0, cut, len(views), random, len(views) * count * space.row_bytes(config, model, cut))
        return
    start = 0
    for stop in sorted({c for c in inputs.plain_cuts(split) if c < cut} | {cut}):
        if not _is_stored(case, split, stop, None, 0):
            yield Due(split, start, stop, 1, None, count * space.row_bytes(config, model, stop))
        start = stop


def augment_of(config: ConfigDict) -> Augment:
    """The augmentation of the training images of `config`."""
    return Augment(**config.data.augment.to_dict(), seed=config.seed)


def _is_stored(case, split, cut, augment, view):
    try:
        wanted = features.Wanted(case.data.splits[split], cut, augment, view)
        return features.location(case.config, case.model, case.variables, wanted).is_dir()
    except (NotThereYetError, WeightsError):  # without weights a store has no name
        return False
