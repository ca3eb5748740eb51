"""The head of a probe that is solved for, in place of training: by ridge regression, L-BFGS, or nearest neighbours."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tltrain.cache.inputs import SplitInputs
from tltrain.errors import TerminatedError
from tltrain.experiment import evaluation, loop
from tltrain.experiment.phase import Phase, Run
from tltrain.models import neighbors, zoo
from tltrain.runtime import console, hosts
from tltrain.training import logreg, ridge, steps


class _Solved(NamedTuple):
    """A head, and what `report.json` has of how it was found."""

    head: dict[str, Any]
    found: dict[str, Any]


def fit(run: Run, phase: Phase, state: steps.TrainState) -> None:
    """Solves for the head of `state`, evaluates it on val, records it as the one epoch of `phase`, and saves it.

    Raises:
        TerminatedError: `run.process.stop()` was true; the same command begins again.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    train, val = (run.inputs.of_phase(phase.name, split, variables) for split in ("train", "val"))
    started = time.perf_counter()
    with run.process.clock("train"):
        head, found = _SOLVERS[phase.config.optimizer](run, phase, variables, train)
    seconds = time.perf_counter() - started
    variables["params"] = {"backbone": state.params["backbone"], "head": head}
    of_train = loop.evaluate_split(run, variables, train, "train")
    of_val = loop.evaluate_split(run, variables, val, "val")
    if of_train is None or of_val is None:
        raise _stopped(phase)
    phase.record.update(seconds=seconds, solved=found)
    rate = of_train.counted.sum() / seconds
    score = loop.record_epoch(run, phase, of_train.scores, of_val.scores, seconds, rate)
    step = jnp.asarray(phase.steps_per_epoch, jnp.int32)
    state = dataclasses.replace(state, step=step, params=variables["params"])
    loop.save(run, phase, phase.steps_per_epoch, state, score)


def _stopped(phase):
    return TerminatedError(f"stopped before the {phase.config.optimizer} probe was saved; the same command solves it")


def _ridge(run: Run, phase: Phase, variables: dict, train: SplitInputs) -> _Solved:
    """Of sums that each process makes of its part."""
    penalty = phase.config.weight_decay
    sums = hosts.collect("ridge", _sums(run, phase, variables, train))
    head = hosts.on_writer(lambda: ridge.solve(_total(sums, 0), _total(sums, 1), penalty))
    return _Solved(head, {"penalty": penalty})


def _sums(run, phase, variables, train):
    """`X^T W X` and `X^T W Y` of features with a last column of ones and the targets, of the part of this process."""
    gram, cross, stopped = np.float64(0), np.float64(0), False
    for batch in evaluation.evaluated(run.setup, variables, train):
        label, features = np.asarray(batch["label"]), np.asarray(batch["inputs"], np.float64)
        rows = np.concatenate([features, np.ones((len(features), 1))], 1)
        targets, weights = run.setup.task.ridge(label)
        weighted = rows * (weights * np.asarray(batch["mask"]))[:, None]
        gram, cross = gram + weighted.T @ rows, cross + weighted.T @ targets
        if stopped := run.process.stop():
            break
    if any(hosts.gather("stopped", stopped)):
        raise _stopped(phase)
    return gram, cross


def _total(parts: list[Any], which: int) -> Any:
    return sum(part[which] for part in parts)


def _logreg(run: Run, phase: Phase, variables: dict, train: SplitInputs) -> _Solved:
    """Says which penalty was chosen, and where it did not converge."""
    config, task, stop = run.setup.config, run.setup.task, run.process.stop
    features, labels, mask = _pooled(run, phase, variables, train)
    examples = logreg.Examples.of(features[mask], labels[mask])
    found: dict[str, Any] = {"penalty": phase.config.weight_decay, "num_held_out": 0, "held_out": {}}
    start = None
    if not found["penalty"]:
        found["penalty"] = logreg.UNTESTED
        if (held := logreg.held_out(labels[mask], config.seed)).any():
            with console.progress(f"{phase.name}: choosing the penalty", len(logreg.PENALTIES)) as update:
                chosen = logreg.choose(task, examples, held, config.checkpoint.best, stop, update)
            if chosen is None:
                raise _stopped(phase)
            scores = {f"{penalty:g}": one for penalty, one in zip(logreg.PENALTIES, chosen.scores, strict=True)}
            found, start = {"penalty": chosen.penalty, "num_held_out": int(held.sum()), "held_out": scores}, chosen.head
        said = f"best on {found['num_held_out']} examples of train" if start else "no class has an example to choose by"
        console.say(f"{phase.name}: penalty {found['penalty']:g}, {said}")
    solution = logreg.solve(task, examples, np.ones(mask.sum(), np.float32), found["penalty"], start, stop)
    if solution is None:
        raise _stopped(phase)
    if not solution.converged:
        console.warn(
            f"{phase.name}: logistic regression did not converge in {solution.num_iterations} iterations; its gradient "
            f"is {solution.gradient:.0e}, wanted {logreg.TOLERANCE:g}; a larger weight_decay helps"
        )
    found |= {"num_iterations": solution.num_iterations, "converged": solution.converged}
    return _Solved(solution.head, found)


def _knn(run: Run, phase: Phase, variables: dict, train: SplitInputs) -> _Solved:
    features, labels, mask = _pooled(run, phase, variables, train)
    targets = run.setup.task.ridge(labels)[0] > 0
    voting = min(phase.config.neighbors, int(mask.sum()))
    return _Solved(neighbors.filled(features, targets, mask), {"neighbors": voting})


_SOLVERS: dict[str, Callable[..., _Solved]] = {"ridge": _ridge, "logreg": _logreg, "knn": _knn}


def _pooled(run, phase, variables, train) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features float32 `[N, C]` and labels of the training examples, in their order, and bool `[N]`: could be read."""
    split = run.setup.data.splits["train"]
    features = np.zeros((split.num_examples, zoo.num_features(run.setup.model)), np.float32)
    counted = np.zeros(split.num_examples, bool)
    for batch in evaluation.evaluated(run.setup, variables, train):
        mask = np.asarray(batch["mask"])
        place = np.searchsorted(split.rows, np.asarray(batch["index"])[mask])
        features[place], counted[place] = np.asarray(batch["inputs"])[mask], True
        if run.process.stop():
            raise _stopped(phase)
    return features, split.labels[split.rows], counted
