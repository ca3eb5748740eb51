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
from tltrain.data import packing, pipeline
from tltrain.errors import WeightsError
from tltrain.experiment import report
from tltrain.models import freeze, zoo
from tltrain.runtime import console, parallel
from tltrain.runtime.checkpoint import Checkpoints
from tltrain.training import steps

_FORWARD_BATCHES = 12  # that the frozen forward pass is timed on
_KEPT_BATCHES = 4  # of their results, to time the steps that start from them
_STEP_SECONDS, _MAX_STEPS = 4.0, 40  # at most, that a step is timed for

Kept = dict[int, Any]  # activations by cut: arrays `[N, ...]`, or a `TokenRows`


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
        given = _examples(case, False, None) if start == 0 else _stored(case, kept[start], None)
        batches = [*itertools.islice(given, _FORWARD_BATCHES)]
        started = time.perf_counter()
        for batch in batches:
            forward.compiled(forward.program(case.setup, start, stop, batch["inputs"]))
        compiling += time.perf_counter() - started
        per_example[start, stop], kept[stop] = _time_forward(case, start, stop, variables, batches)
    return per_example, kept, compiling


def _time_forward(case, start, stop, variables, batches: list[pipeline.Batch]) -> tuple[float, Any]:
    """Seconds an example of stages `[start, stop)`, and some of what they make."""
    kept = [*forward.activations(case.setup, start, stop, variables, batches[:1])]
    timed = batches[1:] or batches
    started = time.perf_counter()
    for result in forward.activations(case.setup, start, stop, variables, timed):
        if len(kept) < _KEPT_BATCHES or packing.is_packed(result["inputs"]):
            kept.append(result)
    seconds = (time.perf_counter() - started) / sum(int(batch["mask"].sum()) for batch in timed)
    return seconds, _joined([jax.device_get(batch["inputs"]) for batch in kept])


def _joined(inputs: list[Any]) -> Any:
    if not packing.is_packed(inputs[0]):
        return jax.tree.map(lambda *parts: np.concatenate(parts), *inputs)
    rows = [row for packed in inputs for row in packing.unpack(packed)]
    rows = [row for row in rows if len(next(iter(row.values())))]
    lengths = np.asarray([len(next(iter(row.values()))) for row in rows])
    return pipeline.TokenRows(lambda index: [rows[i] for i in index], np.ones(len(rows), bool), lengths)


def _extraction(case, store: phases.Due, per_example) -> float:
    """Seconds until `store` is whole."""
    count = len(case.data.splits[store.split].ids)
    spans = [seconds for (start, stop), seconds in per_example.items() if store.start <= start and stop <= store.cut]
    read = case.seconds[f"read {store.split}"] if store.start == 0 else 0.0
    return read + store.num_views * count * sum(spans)


def _phase(case, phase: phases.Prepared, kept: Kept) -> float:
    """Seconds of the steps, evaluations and checkpoints of all epochs; of a head that is solved for, of its input."""
    config, variables = case.config, _variables(case)
    start = steps.create_state(
        variables["params"], variables["batch_stats"], phase.tx, phase.plan, config[phase.name].ema
    )
    state = jax.tree.map(np.asarray, start)
    evaluation = _evaluation(case, phase, kept)
    if phase.train_step is None:  # read once to solve, and once to evaluate
        train = 2 * case.data.splits["train"].num_examples * evaluation
    else:
        batches = _batches(case, phase.train, kept, config[phase.name].augment, 0)
        train = _time_step(case, phase.train_step, state, batches) * case.setup.steps_per_epoch
    val = len(case.data.splits["val"].ids) * evaluation
    save, again = _time_checkpoints(case, phase, state)
    return config[phase.name].epochs * (train + val + again) + save


def _evaluation(case, phase: phases.Prepared, kept: Kept) -> float:
    """Seconds to evaluate an example from what the phase sees of val; the head alone is left out."""
    batches = [*itertools.islice(_batches(case, phase.val, kept, False, None), _FORWARD_BATCHES)]
    for batch in batches:
        forward.compiled(forward.program(case.setup, phase.val.start, case.setup.num_stages, batch["inputs"]))
    return _time_forward(case, phase.val.start, case.setup.num_stages, _variables(case), batches)[0]


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


def _batches(case, inputs: SplitInputs, kept: Kept, augment, epoch) -> Iterator[pipeline.Batch]:
    """Batches of `inputs` in the order of an epoch, or of evaluation where `epoch` is None."""
    if inputs.start == 0:
        return _examples(case, augment, epoch)
    found = kept[inputs.start]
    if isinstance(found, pipeline.TokenRows):
        return _stored(case, found, epoch)
    return _stored(case, jax.tree.map(lambda a, like: a.astype(like.dtype), found, inputs.row), epoch)


def _examples(case, augment: bool, epoch) -> Iterator[pipeline.Batch]:
    """Training examples as a run reads them, as many batches as may be timed."""
    split = case.data.splits["train"]
    if split.kind.ragged:
        return _stored(case, pipeline.tokens(split, pipeline.Corrupt(split, 1.0, lambda message: None)), epoch)
    index, mask = _rows(split.num_examples, case.config.batch_size)
    corrupt = pipeline.Corrupt(split, 1.0, lambda message: None)  # they were all reported already
    return pipeline.from_examples(split, index, mask, corrupt, 0 if augment else None)


def _stored(case, activations: Any, epoch) -> Iterator[pipeline.Batch]:
    """Batches of `activations`, over and over."""
    if isinstance(activations, pipeline.TokenRows):
        return _packed(case, activations, epoch)
    count = len(jax.tree.leaves(activations)[0])
    index, mask = _rows(count, case.config.batch_size)
    given, readable = case.data.splits["train"].labels, np.ones(count, bool)
    labels = given[np.resize(np.arange(len(given)), count)]
    return pipeline.from_arrays(lambda i: jax.tree.map(lambda a: a[i], activations), readable, labels, index, mask)


def _packed(case, rows: pipeline.TokenRows, epoch) -> Iterator[pipeline.Batch]:
    """Packed batches of `rows`: in the order of evaluation a few of all lengths, else of rows drawn at random."""
    num_groups = case.mesh.size
    if epoch is None:
        plan = [*packing.passes(rows.lengths, num_groups)]
        batches = [plan[i] for i in np.unique(np.linspace(0, len(plan) - 1, _FORWARD_BATCHES).round().astype(int))]
    else:
        index, mask = _rows(len(rows.lengths), case.config.batch_size)
        batches = [*pipeline.packed_rows(rows.lengths, index, mask, num_groups)]
    labels = np.resize(case.data.splits["train"].labels, (len(rows.lengths), *case.setup.task.label.shape))
    return pipeline.from_tokens(rows, labels, batches, num_groups)


def _rows(count, batch_size):
    shape = (_MAX_STEPS + 2, batch_size)
    return np.resize(np.random.default_rng(0).permutation(count), shape).astype(np.int32), np.ones(shape, bool)
