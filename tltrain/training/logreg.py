"""Logistic regression to convergence by L-BFGS, and the choice of its penalty on a part of the training examples."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tltrain.training.tasks.task import Task

PENALTIES = tuple(10.0**power for power in range(6, -7, -1))  # from which one is chosen: the range of CLIP
UNTESTED = 1.0  # the penalty where no example can be held out: scikit-learn's default
TOLERANCE = 1e-6  # of the norm of the gradient, see `Solution`
CHOOSING = 1e-4  # the same of heads that a penalty is chosen by: their objective is within 1e-8 of the least
MOST_ITERATIONS = 1000  # as of CLIP
_HELD_OUT = 0.2  # share of the examples of a class
_AT_ONCE = 20  # iterations between two looks at whether to stop

Head = dict[str, np.ndarray]  # "kernel" [C, D], "bias" [D]; float32
_solver = optax.lbfgs()  # with the zoom line search (Nocedal & Wright 2006, algorithms 7.5 and 3.6)


class Examples(NamedTuple):
    """Features `[N, C]` less their `mean` `[C]`, in R coordinates along `axes` `[C, R]`, and their labels.

    All in float64: in float32 L-BFGS stalls where classes can be told apart and the penalty is small, for losses near 0
    are differences of large numbers. `features` `[N, R]` are on the device; `spread` `[R]` are the sums of their
    squares. Where there are fewer examples than features the axes are the principal ones: a kernel that minimises the
    objective is in their span, and there L-BFGS needs a tenth of the iterations and less. Else they are those of the
    features.
    """

    features: jax.Array
    labels: jax.Array
    mean: np.ndarray
    axes: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> "Examples":
        """Those of pooled features float32 `[N, C]` and `labels` `[N, ...]`."""
        mean = features.mean(0, dtype=np.float64)
        centred, axes = features - mean, np.eye(features.shape[1])
        if len(centred) < len(axes):
            axes = np.linalg.svd(centred, full_matrices=False)[2].T
            centred = centred @ axes
        with jax.enable_x64(True):
            return cls(jnp.asarray(centred), jnp.asarray(labels), mean, axes, np.square(centred).sum(0))

    def logits(self, head: Head) -> jax.Array:
        """Those of all of them, float32 `[N, D]`."""
        bias = head["bias"] + self.mean @ head["kernel"]
        with jax.enable_x64(True):
            return (jnp.matmul(self.features, self.axes.T @ head["kernel"]) + bias).astype(jnp.float32)


class Solution(NamedTuple):
    """A head and how near it came.

    `gradient` is the norm of the gradient by the square root of the objective, where each axis is scaled so that its
    curvature is at most 1: its square is about how much lower the objective could be, by the objective.
    """

    head: Head
    num_iterations: int
    gradient: float

    @property
    def converged(self) -> bool:
        """Whether the gradient is as good as 0."""
        return self.gradient <= TOLERANCE


class Chosen(NamedTuple):
    """The penalty that was best on `num_held_out` examples; `scores` of each, as of val; the head that had it."""

    penalty: float
    num_held_out: int
    scores: list[dict[str, float]]
    head: Head


def solve(
    task: Task,
    examples: Examples,
    weights: np.ndarray,
    penalty: float,
    start: Head | None,
    stop: Callable[[], bool],
    tolerance: float = TOLERANCE,
) -> Solution | None:
    """The head that minimises the sum of `weights * task.train_losses` and `penalty / 2` times the squared kernel.

    The bias is free. As in scikit-learn's `LogisticRegression` with `C = 1 / penalty`; where labels are several, whose
    loss is the mean over K classes, with `C = 1 / (K * penalty)` for each.

    Args:
        task: whose loss it is.
        examples: all there are, N.
        weights: `[N]`, 1 of an example that counts, 0 of one that does not.
        penalty: above 0.
        start: a head to begin with, of a penalty not far; None: at zero.
        stop: asked now and then.
        tolerance: of `Solution.gradient`.

    Returns:
        None where `stop()` became true.
    """
    scale = (1 / np.sqrt(examples.spread / 4 + penalty))[:, None]
    if start is None:
        zero = np.zeros((len(examples.mean), task.num_outputs))
        start = {"kernel": zero, "bias": zero[0]}
    point = {
        "kernel": examples.axes.T @ start["kernel"] / scale,
        "bias": start["bias"] + examples.mean @ start["kernel"],
    }
    arrays = (
        examples.features,
        examples.labels,
        np.asarray(weights, np.float64),
        scale,
        np.float64(penalty),
        np.float64(tolerance),
    )
    with jax.enable_x64(True):
        state, done, gradient = (point, _solver.init(jax.tree.map(jnp.asarray, point))), 0, np.inf
        while gradient > tolerance and done < MOST_ITERATIONS:
            if stop():
                return None
            state, count, gradient = _iterate(task, arrays, state)
            done += int(count)
    kernel = examples.axes @ (scale * np.asarray(state[0]["kernel"]))
    bias = np.asarray(state[0]["bias"]) - examples.mean @ kernel
    return Solution({"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}, done, float(gradient))


@functools.partial(jax.jit, static_argnames="task")
def _iterate(task, arrays, state):
    """Up to `_AT_ONCE` iterations on; returns the state, how many, and `Solution.gradient`."""
    features, labels, weights, scale, penalty, tolerance = arrays

    def objective(point):
        kernel = scale * point["kernel"]
        logits = features @ kernel + point["bias"]
        return (weights * task.train_losses(logits, labels)).sum() + penalty / 2 * jnp.square(kernel).sum()

    value_and_grad = optax.value_and_grad_from_state(objective)

    def iterate(carry):
        point, solver_state, count = carry
        value, grad = value_and_grad(point, state=solver_state)
        updates, solver_state = _solver.update(grad, solver_state, point, value=value, grad=grad, value_fn=objective)
        return optax.apply_updates(point, updates), solver_state, count + 1

    def measured(solver_state):
        value, grad = (optax.tree.get(solver_state, name) for name in ("value", "grad"))
        return optax.tree.norm(grad) / jnp.sqrt(value)

    def goes_on(carry):
        _, solver_state, count = carry
        return (count == 0) | ((count < _AT_ONCE) & (measured(solver_state) > tolerance))

    point, solver_state, count = jax.lax.while_loop(goes_on, iterate, (*state, 0))
    return (point, solver_state), count, measured(solver_state)


def held_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """Which examples a penalty is chosen on, bool `[N]`: a fifth, at least one and never all, of each class.

    Of labels that are several at once, bool `[N, K]`, a fifth of all. Nothing where no class has two examples.
    """
    rng = np.random.default_rng(seed)
    groups = labels if labels.ndim == 1 else np.zeros(len(labels), int)
    chosen = np.zeros(len(labels), bool)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        chosen[members[: min(max(1, round(_HELD_OUT * len(members))), len(members) - 1)]] = True
    return chosen


def choose(
    task: Task, examples: Examples, held: np.ndarray, best: str, stop: Callable[[], bool], done: Callable[[int], None]
) -> Chosen | None:
    """The best of `PENALTIES` on the `held` examples, bool `[N]`, by heads of the others.

    Each begins with the one before, of the next larger penalty. Ranked as epochs are where `checkpoint.best` is `best`,
    equals by their loss, the larger penalty before the smaller. `done(i)` is called after each, `stop` is that of
    `solve`, as is what is returned.
    """
    index, weights = np.flatnonzero(held), (~held).astype(np.float32)
    scores: list[dict[str, float]] = []
    heads: list[Head] = []
    for i, penalty in enumerate(PENALTIES):
        solution = solve(task, examples, weights, penalty, heads[-1] if heads else None, stop, CHOOSING)
        if solution is None:
            return None
        heads.append(solution.head)
        scores.append(_scores(task, examples.logits(solution.head)[index], examples.labels[index]))
        done(i + 1)
    ranked = [(task.rank(found, best), -found["loss"], -i) for i, found in enumerate(scores)]
    chosen = -max(ranked)[2]
    return Chosen(PENALTIES[chosen], len(index), scores, heads[chosen])


def _scores(task: Task, logits: Any, labels: Any) -> dict[str, float]:
    means = {"loss": float(task.losses(logits, labels).mean()), task.metric: float(task.score(logits, labels).mean())}
    return means | task.summary(np.asarray(logits), np.asarray(labels))
