"""The steps of one phase: train an epoch, evaluate it, record it, save it; stop anywhere and lose nothing."""

import dataclasses
import time
from typing import Any, NoReturn

import jax
import numpy as np

from tltrain.cache.inputs import SplitInputs
from tltrain.errors import DivergedError, TerminatedError
from tltrain.experiment import evaluation, programs, report
from tltrain.experiment.phase import Phase, Run
from tltrain.models import freeze
from tltrain.runtime import console, pace, parallel
from tltrain.training import metrics, optim, steps
from tltrain.training.setup import Setup


def train(run: Run, phase: Phase, state: steps.TrainState) -> None:
    """The epochs from `state` on: train, evaluate on val, record, save.

    Raises:
        DivergedError: a loss or gradient is not finite.
        TerminatedError: `run.process.stop()` was true; the state is saved.
    """
    variables = steps.variables(state, phase.plan)
    train, val = (run.inputs.of_phase(phase.name, split, variables) for split in ("train", "val"))
    shapes = len(train.shapes(0))
    several = f", for {shapes} shapes of batches" if shapes > 1 else ""
    console.say(f"Compiling the training and evaluation steps{several} ...")
    with run.process.clock("compile"):
        evaluation.prepare(run.setup, val)
    state = parallel.replicate(state, run.setup.mesh)
    compiled = None
    while not is_over(run.setup, phase.name, phase.record["history"]):
        epoch = len(phase.record["history"])
        now = freeze.at_epoch(phase.plan, epoch, phase.config.unfreeze_every_epochs)
        if now.cut != compiled:
            train_step, compiled = _compile_train(run, phase, now, state, train), now.cut
        first, started = int(state.step) - epoch * phase.steps_per_epoch, time.perf_counter()
        with pace.at(pace.STEADY, f"{phase.name} from {now.cut}"):
            state, total = _train_epoch(run, phase, train_step, train, state, epoch)
        passed = time.perf_counter() - started
        found = evaluate_split(run, steps.variables(state, phase.plan), val, "val")
        if found is None:
            _stop(run, phase, state, total)
        rate = (phase.steps_per_epoch - first) * run.setup.config.batch_size / passed
        score = record_epoch(run, phase, _means(run, total), found.scores, passed, rate)
        save(run, phase, int(state.step), state, score)


def save(run: Run, phase: Phase, step: int, state: Any, score: float) -> None:
    """Writes the checkpoint of `step`, which knows what was logged until then."""
    phase.record.update(clock=run.process.clock.total(), logged=run.work.logged(phase.name))
    phase.checkpoints.save(step, state, phase.record, score)


def evaluate_split(run: Run, variables: dict, inputs: SplitInputs, split: str) -> evaluation.Evaluation | None:
    """What `evaluation.over` tells of `variables` on a split of `run`; None where it was stopped."""
    with run.process.clock("compile"):
        evaluation.prepare(run.setup, inputs)
    with run.process.clock("eval"):
        examples, title = run.setup.data.splits[split], f"evaluating {split}"
        return evaluation.over(run.setup, variables, inputs, examples, title, run.process.stop)


def record_epoch(
    run: Run, phase: Phase, train: dict[str, float], val: dict[str, float], seconds: float, rate: float
) -> float:
    """Adds a finished epoch to the history, logs it, and returns what ranks its checkpoint.

    Args:
        run: of which it is a part.
        phase: of which it is the next epoch.
        train: mean loss and `metric` of the task over its training steps.
        val: the scores after it, as by `evaluation.over`.
        seconds: of its training steps.
        rate: examples a second of these.

    Raises:
        DivergedError: the val loss is not finite.
    """
    epoch = len(phase.record["history"]) + 1
    step = epoch * phase.steps_per_epoch
    _check_finite(val["loss"], f"{phase.name}: val loss after epoch {epoch}")
    entry: dict[str, Any] = {"phase": phase.name, "epoch": epoch, "step": step, "train": train, "val": val}
    phase.record["history"].append(entry)
    phase.record["partial"] = None
    run.work.append_metrics(entry | {"seconds": seconds})
    told = ("loss", run.setup.task.metric)
    run.scalars.write(phase.name, step, {f"{split}/{k}": entry[split][k] for split in ("train", "val") for k in told})
    console.say(report.epoch_line(entry, phase.config.epochs, _speed(run, rate)))
    return run.setup.task.rank(val, run.setup.config.checkpoint.best)


def _speed(run, rate):
    return f"{rate:.0f} {run.setup.data.kind.rate}"


def _means(run, total):
    return total.summary(run.setup.task.metric)


def _ranks(setup, history):
    return [setup.task.rank(entry["val"], setup.config.checkpoint.best) for entry in history]


def best_step(setup: Setup, history: list[dict[str, Any]]) -> int | None:
    """The step of the best epoch on val, the earliest of equals; None where none is finished."""
    ranked = [(rank, -entry["step"]) for rank, entry in zip(_ranks(setup, history), history, strict=True)]
    return -max(ranked)[1] if ranked else None


def is_over(setup: Setup, name: str, history: list[dict[str, Any]]) -> bool:
    """Whether the phase `name` has done all its epochs, or as many as its patience without a better one."""
    phase, scores = setup.config[name], _ranks(setup, history)
    if phase.patience and scores and len(scores) - 1 - scores.index(max(scores)) >= phase.patience:
        return True
    return len(scores) >= phase.epochs


def _compile_train(run, phase, now, state, inputs):
    """The training step where the plan is `now`; says from where on it trains where that is not the whole phase."""
    if phase.config.unfreeze_every_epochs:
        stage = (*now.stages, "the head")[now.cut]
        console.say(f"{phase.name}: from epoch {len(phase.record['history']) + 1} on {stage} trains ...")
    tx = optim.make(phase.config, phase.schedule, phase.plan, now)
    with run.process.clock("compile"):
        return programs.train(run.setup, phase.name, tx, now, inputs, state)


def _train_epoch(run: Run, phase: Phase, train_step, train: SplitInputs, state, epoch: int):
    """Steps to the end of `epoch`, also from its middle; returns the state and the totals of the whole epoch."""
    config, clock = run.setup.config, run.process.clock
    first = int(state.step) - epoch * phase.steps_per_epoch
    begun = phase.record["partial"]
    total = metrics.Total(**(begun or {}))
    pending: list[Any] = []
    batches = parallel.prefetch(train.batches(epoch, first), run.setup.mesh, config.parallel)
    title = f"{phase.name} {epoch + 1}/{phase.config.epochs}"
    started, shown, waited = time.perf_counter(), time.perf_counter(), clock.seconds["input"]
    with console.progress(title, phase.steps_per_epoch, first) as update:
        for i in range(first, phase.steps_per_epoch):
            with clock("input"):
                batch = next(batches)
            with clock("train"):
                if not pending:
                    jax.block_until_ready((state, batch))
                begun_at = time.perf_counter()
                state, step_metrics = train_step(state, batch)
            step, stop = epoch * phase.steps_per_epoch + i + 1, run.process.stop_at_step()
            if not pending:  # then the devices did nothing else
                with clock("train"):
                    jax.block_until_ready(step_metrics)
                _note_rate(phase, config.batch_size / (time.perf_counter() - begun_at))
            pending.append(step_metrics)
            last = i + 1 == phase.steps_per_epoch
            every = config.checkpoint.every_steps
            save = every and step % every == 0 and not last
            if save or stop or last or step % config.log.every_steps == 0 or time.perf_counter() - shown > 0.5:
                with clock("train"):
                    finished = jax.device_get(pending)
                    pace.get_on()
                    record_steps(run, phase, finished, total, step)
                    pending.clear()
                phase.record["seconds"] += time.perf_counter() - shown
                phase.record["seconds_waiting"] += clock.seconds["input"] - waited
                shown, waited = time.perf_counter(), clock.seconds["input"]
                rate = (i + 1 - first) * config.batch_size / (shown - started)
                update(i + 1, report.progress_note(_means(run, total), _speed(run, rate)))
            if stop:
                _stop(run, phase, state, total)
            if save:
                _save_within_epoch(run, phase, state, total)
    return state, total


def _note_rate(phase, rate):
    """Keeps the `rate` of a step that nothing was done beside, in examples a second; the highest is what it can be."""
    phase.record["step_examples_per_second"] = max(rate, phase.record["step_examples_per_second"] or 0.0)


def _save_within_epoch(run, phase, state, total):
    """A checkpoint that is not evaluated: it counts as the newest, never as the best."""
    phase.record["partial"] = dataclasses.asdict(total)
    save(run, phase, int(state.step), state, score=-1e30)


def _stop(run, phase, state, total) -> NoReturn:
    _save_within_epoch(run, phase, state, total)
    where = f"{phase.name} step {int(state.step)}"
    raise TerminatedError(f"stopped at {where}; saved in {run.work.path}; the same command goes on")


def record_steps(
    run: Run, phase: Phase, finished: list[tuple[metrics.Metrics, Any]], total: metrics.Total, last_step: int
) -> None:
    """Adds the results of steps up to `last_step`, as `steps.train_step` gives them, to `total`; logs those due.

    Raises:
        DivergedError: a loss or gradient is not finite.
    """
    for step, (counted, grad_norm) in enumerate(finished, last_step - len(finished) + 1):
        _check_finite(float(counted.loss), f"{phase.name}: loss at step {step}")
        _check_finite(float(grad_norm), f"{phase.name}: gradient at step {step}")
        total.add(counted)
        if step % run.setup.config.log.every_steps == 0:
            one = metrics.Total()
            one.add(counted)
            scalars = _means(run, one) | {
                "grad_norm": float(grad_norm),
                "learning_rate": float(phase.schedule(step - 1)),
            }
            run.work.append_metrics({"phase": phase.name, "step": step, **scalars})
            run.scalars.write(phase.name, step, {f"step/{key}": value for key, value in scalars.items()})


def _check_finite(value, what):
    if not np.isfinite(value):
        raise DivergedError(
            f"{what} is {value}; checkpoints before it are kept; lower the learning rate, add warm-up or clip_norm"
        )
