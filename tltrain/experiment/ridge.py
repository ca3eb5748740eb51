"""The head of a probe in closed form: ridge regression on pooled features, in place of training."""

import dataclasses
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from tltrain.errors import TerminatedError
from tltrain.experiment import evaluation, loop
from tltrain.experiment.phase import Phase, Run
from tltrain.runtime import hosts
from tltrain.training import steps


def fit(run: Run, phase: Phase, state: steps.TrainState) -> None:
    """Solves for the head of `state`, evaluates it on val, records it as the one epoch of `phase`, and saves it.

    Raises:
        TerminatedError: `run.process.stop()` was true; the same command begins again.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    train, val = (run.inputs.of_phase(phase.name, split, variables) for split in ("train", "val"))
    started = time.perf_counter()
    with run.process.clock("train"):
        sums = hosts.collect("ridge", _sums(run, variables, train))
        head = hosts.on_writer(lambda: solve(_total(sums, 0), _total(sums, 1), phase.config.weight_decay))
    seconds = time.perf_counter() - started
    variables["params"] = {"backbone": state.params["backbone"], "head": head}
    of_train = loop.evaluate_split(run, variables, train, "train")
    of_val = loop.evaluate_split(run, variables, val, "val")
    if of_train is None or of_val is None:
        raise TerminatedError("stopped before the ridge probe was saved; the same command solves it again")
    phase.record["seconds"] = seconds
    rate = of_train.counted.sum() / seconds
    score = loop.record_epoch(run, phase, of_train.scores, of_val.scores, seconds, rate)
    step = jnp.asarray(phase.steps_per_epoch, jnp.int32)
    state = dataclasses.replace(state, step=step, params=variables["params"])
    loop.save(run, phase, phase.steps_per_epoch, state, score)


def _sums(run, variables, train):
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
        raise TerminatedError("stopped before the ridge probe was solved; the same command solves it")
    return gram, cross


def _total(parts: list[Any], which: int) -> Any:
    return sum(part[which] for part in parts)


def solve(gram: np.ndarray, cross: np.ndarray, penalty: float) -> dict[str, np.ndarray]:
    """The head of least weighted squares with `penalty` times the squared kernel; the bias is free.

    Args:
        gram: `X^T W X` float64 `[C + 1, C + 1]` of features whose last column is one.
        cross: `X^T W Y` float64 `[C + 1, D]` of the same features and the targets.
        penalty: above 0, in units of the squared features times the weights (the `alpha` of scikit-learn's `Ridge`).

    Returns:
        `{"kernel" [C, D], "bias" [D]}`, float32.
    """
    count, mean, target_mean = gram[-1, -1], gram[-1, :-1] / gram[-1, -1], cross[-1] / gram[-1, -1]
    centred = gram[:-1, :-1] - count * np.outer(mean, mean)
    kernel = np.linalg.solve(centred + penalty * np.eye(len(mean)), cross[:-1] - count * np.outer(mean, target_mean))
    return {"kernel": kernel.astype(np.float32), "bias": (target_mean - mean @ kernel).astype(np.float32)}
