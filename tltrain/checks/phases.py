"""The phases as a run would do them, without doing them: what each sees, the stores that takes, its compiled steps."""

import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from tltrain import config as config_lib
from tltrain.cache import features, forward, space
from tltrain.cache.inputs import Inputs, SplitInputs
from tltrain.checks.case import Case
from tltrain.checks.finding import NotThereYetError
from tltrain.errors import WeightsError
from tltrain.experiment import evaluation, programs
from tltrain.models import freeze, zoo
from tltrain.runtime.process import Process
from tltrain.training import optim, steps


class Due(NamedTuple):
    """A store that a run would compute: stages `[start, cut)` over `split`, `num_views` times where views are kept."""

    split: str
    start: int
    cut: int
    num_views: int
    num_bytes: int


class Prepared(NamedTuple):
    """A phase: what it sees of train and val, its state as shapes, its compiled step, and the seconds of compiling.

    `train_step` is None where the head is solved for.
    """

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
    """What decides for a run whether a phase sees examples."""
    return Inputs(case.setup, Process())


def names(case: Case) -> list[str]:
    """The phases that are not skipped."""
    return [name for name in config_lib.PHASES if case.config[name].epochs]


@functools.cache
def prepare(case: Case, name: str) -> Prepared:
    """Compiles what phase `name` runs, once; gradual unfreezing as it is in the end."""
    phase, shapes, plan = case.config[name], zoo.shapes(case.model), case.setup.plan(name)
    tx = optim.make(phase, optim.make_schedule(phase, case.setup.steps_per_epoch), plan, plan)
    state = jax.eval_shape(lambda v: steps.create_state(v["params"], v["batch_stats"], tx, plan, phase.ema), shapes)
    train, val = (_seen(case, name, split, plan.cut) for split in ("train", "val"))
    started = time.perf_counter()
    is_solved = phase.optimizer in config_lib.SOLVED
    train_step = None if is_solved else programs.train(case.setup, name, tx, plan, train, state)
    evaluation.prepare(case.setup, val)
    return Prepared(name, train, val, plan, tx, state, train_step, time.perf_counter() - started)


def prepared(case: Case) -> list[Prepared]:
    """Every phase that is not skipped."""
    return [prepare(case, name) for name in names(case)]


def _seen(case, name, split, cut) -> SplitInputs:
    """As `Inputs.of_phase` gives it, but that nothing is computed, so stored activations have no batches."""
    train, inputs = split == "train", inputs_of(case)
    if inputs.why_examples(name, train):
        return inputs.examples(split, train and case.config[name].augment)
    examples = inputs.examples(split)

    def shapes(epoch):
        return tuple(space.as_stored(case.config, result(case, 0, cut, given)) for given in examples.shapes(epoch))

    def stored(shapes_of_batch):
        return jax.tree.map(lambda leaf: leaf.update(shape=leaf.shape[1:]), shapes_of_batch)

    return SplitInputs(lambda epoch, first: iter(()), cut, shapes, stored(shapes(None)[0]))


def result(case: Case, start: int, stop: int, inputs: Any) -> Any:
    """The shapes of what the frozen stages `[start, stop)` make of `inputs`."""
    return forward.result(forward.program(case.setup, start, stop, inputs)) if stop > start else inputs


def due_stores(case: Case) -> list[Due]:
    """The stores that a run would compute, in its order; those that are there already are left out."""
    found = dict.fromkeys(one for name in names(case) for split in ("train", "val") for one in _due(case, name, split))
    if "test" in case.data.splits:  # of one phase, whichever is better
        found |= dict.fromkeys(_due(case, names(case)[-1], "test"))
    return list(found)


def _due(case, name, split) -> Iterator[Due]:
    config, inputs, cut = case.config, inputs_of(case), case.setup.plan(name).cut
    augment = split == "train" and config[name].augment
    if inputs.why_examples(name, split == "train"):
        return
    count = len(case.data.splits[split].ids)
    if augment:
        views = [v for v in range(config.features.augment_views) if not _is_stored(case, split, cut, v)]
        if views:
            yield Due(split, 0, cut, len(views), len(views) * count * space.row_bytes(case.setup, cut))
        return
    start = 0
    for stop in sorted({c for c in inputs.plain_cuts(split) if c < cut} | {cut}):
        if not _is_stored(case, split, stop, None):
            yield Due(split, start, stop, 1, count * space.row_bytes(case.setup, stop))
        start = stop


def _is_stored(case, split, cut, view):
    try:
        wanted = features.Wanted(case.data.splits[split], cut, view)
        return features.location(case.setup, case.variables, wanted).is_dir()
    except (NotThereYetError, WeightsError):  # without weights a store has no name
        return False
