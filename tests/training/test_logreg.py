"""Logistic regression is at its minimum, and its penalty is chosen on examples it did not see."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from tltrain.training import logreg
from tltrain.training.logreg import Examples
from tltrain.training.tasks.classification import Classification
from tltrain.training.tasks.multi_label import MultiLabel

KINDS = ("sigmoid", "softmax", "weighted and smoothed", "several labels")


MORE_EXAMPLES, MORE_FEATURES = (60, 7), (30, 50)


def drawn(kind, count=60, width=7):
    """A task of 2 or 3 classes, features of very different scale float32 `[N, C]`, and labels they say little of."""
    rng = np.random.default_rng(0)
    num_classes = 2 if kind == "sigmoid" else 3
    names, own = tuple("abc"[:num_classes]), kind == "weighted and smoothed"
    weights, smoothing = ((0.5, 1.0, 3.0), 0.1) if own else ((1.0,) * num_classes, 0.0)
    rows = rng.normal(1, 1, (count, width))
    scores = rows @ rng.normal(size=(width, num_classes)) + rng.normal(0, 3, (count, num_classes))
    features = (rows * np.geomspace(0.05, 20, width) + 3).astype(np.float32)
    if kind == "several labels":
        return MultiLabel(names, smoothing, weights), features, scores > np.median(scores, 0)
    labels = (scores - np.median(scores, 0)).argmax(1).astype(np.int32)
    return Classification(names, num_classes == 2, smoothing, weights), features, labels


def gradient_and_curvature(task, features, labels, penalty, head):
    """Of the penalised loss, float64 `[D, C + 1]` and `[D, C + 1, D, C + 1]`; `head` `[D, C + 1]`, its bias last."""
    count, outputs = len(labels), task.num_outputs
    rows = np.concatenate([features.astype(np.float64), np.ones((count, 1))], 1)
    logits = rows @ head.T
    free = np.append(np.full(features.shape[1], penalty), 0.0)
    if isinstance(task, MultiLabel) or outputs == 1:
        said, target = 1 / (1 + np.exp(-logits)), labels.reshape(count, outputs).astype(float)
        weights, bend = np.ones(count) / outputs, np.einsum("nd,de->nde", said * (1 - said), np.eye(outputs))
    else:
        said = np.exp(logits - logits.max(1, keepdims=True))
        said /= said.sum(1, keepdims=True)
        target = np.eye(outputs)[labels] * (1 - task.smoothing) + task.smoothing / outputs
        weights = np.asarray(task.class_weights)[labels]
        bend = np.einsum("nd,de->nde", said, np.eye(outputs)) - np.einsum("nd,ne->nde", said, said)
    gradient = np.einsum("n,nd,nc->dc", weights, said - target, rows) + free * head
    curvature = np.einsum("n,nde,nb,nc->dbec", weights, bend, rows, rows)
    return gradient, curvature + np.einsum("de,bc->dbec", np.eye(outputs), np.diag(free))


def newtons(task, features, labels, penalty):
    head = np.zeros((task.num_outputs, features.shape[1] + 1))
    for _ in range(30):
        gradient, curvature = gradient_and_curvature(task, features, labels, penalty, head)
        head -= (np.linalg.pinv(curvature.reshape(head.size, -1)) @ gradient.ravel()).reshape(head.shape)
    return head


def solved(task, features, labels, penalty):
    weights = np.ones(len(labels), np.float32)
    return logreg.solve(task, Examples.of(features, labels), weights, penalty, None, lambda: False)


# with fewer examples than features classes can be told apart, and only a penalty keeps the head finite
@pytest.mark.parametrize(
    ("size", "penalty"), [(MORE_EXAMPLES, 0.1), (MORE_EXAMPLES, 100.0), (MORE_FEATURES, 0.1), (MORE_FEATURES, 100.0)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_that_of_newtons_method(kind, size, penalty):
    task, features, labels = drawn(kind, *size)
    found, expected = solved(task, features, labels, penalty), newtons(task, features, labels, penalty)
    assert found.converged
    kernel, bias = found.head["kernel"].T, found.head["bias"]
    np.testing.assert_allclose(kernel, expected[:, :-1], atol=1e-4 * np.abs(expected[:, :-1]).max())
    exact = features.astype(np.float64) @ expected[:, :-1].T + expected[:, -1]
    np.testing.assert_allclose(features @ kernel.T + bias, exact, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_zero_at_the_head(kind):
    task, features, labels = drawn(kind)
    head = solved(task, features, labels, 1.0).head
    found = np.concatenate([head["kernel"], head["bias"][None]]).T.astype(np.float64)
    at_head, at_zero = (gradient_and_curvature(task, features, labels, 1.0, w)[0] for w in (found, 0 * found))
    assert (np.abs(at_head).max(0) < 1e-4 * np.abs(at_zero).max(0).clip(1)).all()


def test_where_so_many_iterations_are_too_few_it_says_that_it_did_not_converge():
    rng = np.random.default_rng(0)
    task = Classification(tuple("abcd"), False, 0.0, (1.0,) * 4)
    features, labels = rng.normal(100, 1, (40, 60)).astype(np.float32), rng.integers(0, 4, 40).astype(np.int32)
    found = solved(task, features, labels, 1e-9)
    assert not found.converged and found.num_iterations >= logreg.MOST_ITERATIONS
    assert np.isfinite(found.head["kernel"]).all()


def test_a_part_of_each_class_is_held_out_by_the_seed():
    labels = np.repeat([0, 1, 2, 3], [20, 3, 2, 1])
    held = logreg.held_out(labels, 0)
    assert collections.Counter(labels[held].tolist()) == {0: 4, 1: 1, 2: 1}
    assert (held == logreg.held_out(labels, 0)).all() and (held != logreg.held_out(labels, 1)).any()
    assert not logreg.held_out(np.arange(5), 0).any()
    assert logreg.held_out(np.ones((10, 3), bool), 0).sum() == 2


@pytest.mark.parametrize("best", ["accuracy", "loss"])
@pytest.mark.parametrize("kind", ["softmax", "several labels"])
def test_the_penalty_is_the_best_on_what_was_held_out(kind, best):
    task, features, labels = drawn(kind)
    held, seen = logreg.held_out(labels, 0), []
    chosen = logreg.choose(task, Examples.of(features, labels), held, best, lambda: False, seen.append)
    assert seen[-1] == len(logreg.PENALTIES) and chosen.num_held_out == held.sum()
    scores = []
    for penalty, told in zip(logreg.PENALTIES, chosen.scores, strict=True):
        head = newtons(task, features[~held], labels[~held], max(penalty, 1e-3))
        logits = (features[held] @ head[:, :-1].T + head[:, -1]).astype(np.float32)
        loss = float(task.losses(jnp.asarray(logits), jnp.asarray(labels[held])).mean())
        assert penalty < 1e-2 or told["loss"] == pytest.approx(loss, rel=1e-3)
        scores.append((task.rank(told, best), -told["loss"], penalty))
    assert chosen.penalty == max(scores)[2] and len({rank for rank, *_ in scores}) > 1


def test_of_equal_penalties_the_larger_is_chosen():
    task = Classification(("a", "b"), True, 0.0, (1.0, 1.0))
    features, labels = np.ones((10, 3), np.float32), np.tile([0, 1], 5).astype(np.int32)  # nothing can be told
    held = logreg.held_out(labels, 0)
    assert logreg.choose(task, Examples.of(features, labels), held, "accuracy", bool, print).penalty == 1e6


def test_it_ends_when_it_is_asked_to():
    task, features, labels = drawn("softmax")
    examples, weights = Examples.of(features, labels), np.ones(len(labels), np.float32)
    assert logreg.solve(task, examples, weights, 1e-3, None, lambda: True) is None
    assert logreg.choose(task, examples, logreg.held_out(labels, 0), "loss", lambda: True, print) is None
