"""How long the run would take: its own programs, timed on a few of its own batches, times what is to be done.

On two cores that others kept busy, four runs of 90 to 190 s took from 16 % less to 39 % more than this said: what
is left out is the writing of the stores, and the end of the process.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tltrain.cache import forward
from tltrain.cache.inputs import SplitInputs
from tltrain.checks import memory, phases
from tltrain.checks.case import Case
from tltrain.checks.finding import Finding, NotThereYetError, advice, fine
from tltrain.data import pipeline
from tltrain.errors import WeightsError
from tltrain.experiment import evaluation, report
from tltrain.models import freeze, zoo
from tltrain.runtime import console, parallel
from tltrain.runtime.checkpoint import Checkpoints
from tltrain.training import steps

_FORWARD_BATCHES = 12  # that the frozen forward pass is timed on
_KEPT_BATCHES = 4  # of their results, to time the steps that start from them
_STEP_SECONDS, _MAX_STEPS = 4.0, 40  # at most, that a step is timed for

Kept = dict[int, Any]  # activations by cut


def check_seconds(case: Case) -> Iterator[Finding]:
    """Seconds of the whole run, by part."""
    ready, due = phases.prepared(case), phases.due_stores(case)
    if not all(memory.fits(case, phase) for phase in ready):
        yield advice("not timed: a step does not fit the memory")
        return
    cuts = {inputs.start for phase in ready for inputs in (phase.train, phase.val)} | {store.cut for store in due}
    with console.progress("Timing a few batches", len(ready) + 1) as update:
        per_example, kept, compiling = _forward(case, sorted(cuts - {0}))
        parts = {name: case.seconds[name] for name in ("imports", "data")}
        parts["features"] = sum(_extraction(case, store, per_example) for store in due)
        parts["compile"] = sum(phase.seconds for phase in ready) + (compiling if due else 0.0)
        for done, phase in enumerate(ready, 1):
            update(done)
            parts[phase.name] = _phase(case, phase, kept)
    if "test" in case.data.splits:
        parts["test"] = len(case.data.splits["test"].ids) * _evaluation(case, ready[-1], kept)
    if due or "test" in case.data.splits or any(phase.train.start == 0 for phase in ready):
        parts["tensorflow"] = case.seconds["tensorflow"]
    shown = ", ".join(f"{part} {report.duration(seconds)}" for part, seconds in parts.items())
    yield fine(f"about {_rounded(sum(parts.values()))} on this machine, as busy as it is now; seconds: {shown}")


def _rounded(seconds):
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _variables(case) -> dict:
    """Those of the run, or others of their shapes where its weights cannot be had: as fast."""
    try:
        return case.variables
    except (NotThereYetError, WeightsError):
        return zoo.init(case.model, 0, None)


def _forward(case, cuts) -> tuple[dict[tuple[int, int], float], Kept, float]:
    """Seconds an example between neighbouring `cuts`, some activations at each, and the seconds of compiling."""
    per_example: dict[tuple[int, int], float] = {}
    kept: Kept = {}
    compiling = 0.0
    variables = _variables(case)
    for start, stop in itertools.pairwise([0, *cuts]):
        started = time.perf_counter()
        program = phases.program(case, start, stop)
        run, frozen = forward.compiled(program), forward.constants(program, variables)
        compiling += time.perf_counter() - started
        batches = _examples(case, False) if start == 0 else _stored(case, kept[start])
        inputs = (batch["inputs"] for batch in itertools.islice(batches, _FORWARD_BATCHES))
        per_example[start, stop], kept[stop] = _time_forward(case, run, frozen, inputs)
    return per_example, kept, compiling


def _time_forward(case, run, frozen, inputs: Iterator[Any]) -> tuple[float, Any]:
    def compute(x):
        return jax.device_get(run(frozen, parallel.put(x, case.mesh)))

    kept = [compute(next(inputs))]
    started, num_batches = time.perf_counter(), 0
    for result in forward.in_order(compute, ((x,) for x in inputs), case.mesh):
        num_batches += 1
        if len(kept) < _KEPT_BATCHES:
            kept.append(result)
    seconds = (time.perf_counter() - started) / (num_batches * case.config.batch_size)
    return seconds, jax.tree.map(lambda *parts: np.concatenate(parts), *kept)


def _extraction(case, store: phases.Due, per_example) -> float:
    """Seconds until `store` is whole."""
    count = len(case.data.splits[store.split].ids)
    spans = [seconds for (start, stop), seconds in per_example.items() if store.start <= start and stop <= store.cut]
    read = case.seconds[f"read {store.split}"] if store.start == 0 else 0.0
    return read + store.num_views * count * sum(spans)


def _phase(case, phase: phases.Prepared, kept: Kept) -> float:
    """Seconds of the steps, evaluations and checkpoints of all epochs."""
    config, variables = case.config, _variables(case)
    start = steps.create_state(
        variables["params"], variables["batch_stats"], phase.tx, phase.plan, config[phase.name].ema
    )
    state = jax.tree.map(np.asarray, start)
    step = _time_step(case, phase.train_step, state, _batches(case, phase.train, kept, config[phase.name].augment))
    train = step * case.setup.steps_per_epoch
    val = len(case.data.splits["val"].ids) * _evaluation(case, phase, kept)
    save, again = _time_checkpoints(case, phase, state)
    return config[phase.name].epochs * (train + val + again) + save


def _evaluation(case, phase: phases.Prepared, kept: Kept) -> float:
    """Seconds to evaluate an example from what the phase sees of val; the head alone is left out."""
    program = evaluation.program(case.setup, phase.val)
    run, frozen = forward.compiled(program), forward.constants(program, _variables(case))
    batches = itertools.islice(_batches(case, phase.val, kept, False), _FORWARD_BATCHES)
    return _time_forward(case, run, frozen, (batch["inputs"] for batch in batches))[0]


def _time_checkpoints(case, phase: phases.Prepared, state) -> tuple[float, float]:
    """Seconds of the first checkpoint, with what is frozen, and reading it back; and of each one after it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Checkpoints(Path(folder), 1, freeze.constants(phase.plan, state.params))) as checkpoints,
    ):
        started = time.perf_counter()
        checkpoints.save(1, state, {}, 0.0)
        checkpoints.restore(1)
        between = time.perf_counter()
        checkpoints.save(2, state, {}, 0.0)
        return between - started, time.perf_counter() - between


def _time_step(case, step: Callable[..., Any], state: Any, batches: Iterator[pipeline.Batch]) -> float:
    """Seconds of a training step, its input included."""
    state = parallel.replicate(state, case.mesh)
    started, count = 0.0, -1
    for batch in parallel.prefetch(batches, case.mesh, case.config.parallel):
        state, other = step(state, batch)
        jax.block_until_ready((state, other))
        started, count = (time.perf_counter(), 0) if count < 0 else (started, count + 1)  # the first is a warm-up
        if count == _MAX_STEPS or (count and time.perf_counter() - started > _STEP_SECONDS):
            break
    return (time.perf_counter() - started) / count


def _batches(case, inputs: SplitInputs, kept: Kept, augment) -> Iterator[pipeline.Batch]:
    if inputs.start == 0:
        return _examples(case, augment)
    return _stored(case, jax.tree.map(lambda a, like: a.astype(like.dtype), kept[inputs.start], inputs.row))


def _examples(case, augment: bool) -> Iterator[pipeline.Batch]:
    """Training examples as a run reads them, as many batches as may be timed."""
    split = case.data.splits["train"]
    index, mask = _rows(split.num_examples, case.config.batch_size)
    corrupt = pipeline.Corrupt(split, 1.0, lambda message: None)  # they were all reported already
    return pipeline.from_examples(split, index, mask, corrupt, 0 if augment else None)


def _stored(case, activations: Any) -> Iterator[pipeline.Batch]:
    """Batches of `activations`, over and over."""
    count = len(jax.tree.leaves(activations)[0])
    index, mask = _rows(count, case.config.batch_size)
    given, readable = case.data.splits["train"].labels, np.ones(count, bool)
    labels = given[np.resize(np.arange(len(given)), count)]
    return pipeline.from_arrays(lambda i: jax.tree.map(lambda a: a[i], activations), readable, labels, index, mask)


def _rows(count, batch_size):
    shape = (_MAX_STEPS + 2, batch_size)
    return np.resize(np.random.default_rng(0).permutation(count), shape).astype(np.int32), np.ones(shape, bool)
