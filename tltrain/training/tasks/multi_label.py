"""Several classes at once, or none: a sigmoid each, F1 over classes and over answers, mean average precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from tltrain.config import PHASES
from tltrain.data.names import Names
from tltrain.data.split import Split
from tltrain.errors import ConfigError
from tltrain.training import bootstrap
from tltrain.training.scores import OfClass
from tltrain.training.tasks.classification import named_weights
from tltrain.training.tasks.task import Task, rounded


class Predictions(NamedTuple):
    """The readable examples of one split.

    `labels` and `predicted`, the classes more probable than not, are bool `[N, K]`, `probabilities` float64 `[N, K]`,
    `losses` float64 `[N]`.
    """

    ids: Names
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class MultiLabel(Task):
    """A label is bool `[K]`, which classes there are; the loss is the mean of those of its classes."""

    smoothing: float
    class_weights: tuple[float, ...]  # factors of the loss where a class is there

    name = "multi_label"
    metric = "accuracy"
    unit = "nats"

    @classmethod
    def of(cls, config: ConfigDict, class_names: tuple[str, ...], train: Split | None) -> Self:
        """That of a config; `loss.class_weights = "auto"` lets a class count alike where it is and where it is not."""
        if config.model.head == "softmax":
            raise ConfigError(
                "model.head = 'softmax' chooses one class, the examples have several labels; use 'sigmoid'"
            )
        setting, weights = config.loss.class_weights, np.ones(len(class_names), np.float32)
        if setting is not None and any(config[phase].optimizer == "ridge" for phase in PHASES):
            raise ConfigError(f"loss.class_weights = {setting!r}, allowed: None with ridge where labels are several")
        if setting is not None and train is not None:
            counts = train.class_counts(len(class_names))
            absent = train.num_examples - counts
            balance = np.where(absent, absent / counts, 1.0).astype(np.float32)
            weights = balance if setting == "auto" else named_weights(setting, class_names)
        return cls(class_names, config.loss.label_smoothing, tuple(weights.tolist()))

    @property
    def num_outputs(self) -> int:
        """One for each class."""
        return len(self.class_names)

    @property
    def label(self) -> jax.ShapeDtypeStruct:
        """Which classes there are."""
        return jax.ShapeDtypeStruct((len(self.class_names),), np.bool_)

    def losses(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Binary cross entropy in nats, the mean over classes."""
        return optax.sigmoid_binary_cross_entropy(logits, label.astype(jnp.float32)).mean(-1)

    def train_losses(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """The same of smoothed labels, weighted where a class is there."""
        target = label.astype(jnp.float32)
        smooth = target * (1 - self.smoothing) + self.smoothing / 2
        factors = jnp.where(label, jnp.asarray(self.class_weights, jnp.float32), 1.0)
        return (factors * optax.sigmoid_binary_cross_entropy(logits, smooth)).mean(-1)

    def score(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """The share of classes that are told right."""
        return ((logits > 0) == label).mean(-1, dtype=jnp.float32)

    def same(self, answers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """All classes."""
        return ((answers > 0.5) == (others > 0.5)).all(-1)

    @classmethod
    def ranked_by(cls, best: str) -> str:
        """Mean average precision: the share of right labels hardly moves where labels are few."""
        return "map" if best == "accuracy" else "loss"

    def activation(self, nn: Any, logits: Any) -> Any:
        """A probability each."""
        return nn.sigmoid(logits)

    def said(self, logits: np.ndarray) -> np.ndarray:
        """A probability each."""
        return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))

    def summary(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """`f1_macro`, `f1_micro` and `map`, as of `with_intervals`."""
        one = np.ones((1, len(labels)))
        found = {name: statistic(one) for name, statistic in _statistics(labels, logits > 0, logits).items()}
        return {name: float(value[0]) for name, value in found.items()}

    def detail(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """How good it is to answer for each class what is more frequent."""
        share = labels.mean(0)
        names = [name for name, s in zip(self.class_names, share, strict=True) if s > 0.5]
        answer = {"answer": " and ".join(names) or "no class", "accuracy": float(np.maximum(share, 1 - share).mean())}
        return {"baseline": answer}

    def by_class(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, OfClass]:
        """One entry a class."""
        return dict(zip(self.class_names, by_class(labels, logits > 0), strict=True))

    def line(self, logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
        """The label is the list of classes there are, `predicted` of those more probable than not."""
        classes = {"label": np.flatnonzero(label).tolist(), "predicted": np.flatnonzero(logits > 0).tolist()}
        loss = np.logaddexp(0, np.where(label, -logits, logits).astype(np.float64)).mean()
        return classes | {"probabilities": rounded(self.said(logits)), "loss": float(f"{loss:.6g}")}

    def answer(self, logits: np.ndarray) -> dict[str, Any]:
        """The classes more probable than not, and the probability of each."""
        named = dict(zip(self.class_names, rounded(self.said(logits)), strict=True))
        return {"classes": [self.class_names[i] for i in np.flatnonzero(logits > 0)], "probabilities": named}

    def ridge(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """1 where a class is, -1 where not."""
        return np.where(labels, 1.0, -1.0), np.ones(len(labels))

    @staticmethod
    def answers(lines: Sequence[dict[str, Any]]) -> Predictions:
        """Of every class."""
        probabilities = np.asarray([line["probabilities"] for line in lines], float)
        labels, predicted = np.zeros((2, *probabilities.shape), bool)
        for i, line in enumerate(lines):
            labels[i, line["label"]] = predicted[i, line["predicted"]] = True
        losses = np.asarray([line["loss"] for line in lines], float)
        return Predictions(tuple(line["id"] for line in lines), labels, predicted, probabilities, losses)

    @staticmethod
    def each(found: Predictions) -> np.ndarray:
        """The share of classes that are told right."""
        return (found.predicted == found.labels).mean(1)

    @staticmethod
    def with_intervals(found: Predictions) -> dict[str, bootstrap.Estimate]:
        """Accuracy, loss, F1 over classes and over all answers, mean average precision."""
        statistics = {"accuracy": bootstrap.mean(MultiLabel.each(found)), "loss": bootstrap.mean(found.losses)}
        statistics |= _statistics(found.labels, found.predicted, found.probabilities)
        made = bootstrap.estimates(list(statistics.values()), len(found.ids), columns=found.labels.shape[1])
        return dict(zip(statistics, made, strict=True))


def by_class(labels: np.ndarray, predicted: np.ndarray) -> list[OfClass]:
    """One entry a class, from bool `[N, K]` each."""
    right, answers, support = (labels & predicted).sum(0), predicted.sum(0), labels.sum(0)
    with np.errstate(invalid="ignore"):
        columns = (right / answers, right / support, 2 * right / (answers + support), support)
    return [OfClass(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _statistics(labels: np.ndarray, predicted: np.ndarray, ranks: np.ndarray) -> dict[str, bootstrap.Statistic]:
    """`f1_macro`, `f1_micro`, `map` of bool `labels` and `predicted` `[N, K]`; `ranks` `[N, K]` order the examples.

    A class that is neither there nor answered has an F1 of 0, as in scikit-learn; the mean of average precisions is
    over the classes that are there.
    """
    right, either = (labels & predicted).astype(float), labels.astype(float) + predicted

    def f1(counts, axis):
        twice, total = 2 * counts @ right, counts @ either
        if axis is None:
            twice, total = twice.sum(1, keepdims=True), total.sum(1, keepdims=True)
        return (twice / np.maximum(total, 1)).mean(1)

    order = np.argsort(-ranks, axis=0, kind="stable")
    ranked, falling = (np.take_along_axis(values, order, 0) for values in (labels, -ranks))

    def mean_average_precision(counts):
        total, there = np.zeros(len(counts)), np.zeros(len(counts))
        for k in range(labels.shape[1]):
            drawn, equal = counts[:, order[:, k]], np.searchsorted(falling[:, k], falling[:, k], "right") - 1
            positive = drawn * ranked[:, k]  # precision is that of all that are as probable or more
            precision = np.cumsum(positive, 1)[:, equal] / np.maximum(np.cumsum(drawn, 1), 1)[:, equal]
            support = positive.sum(1)
            total, there = total + (positive * precision).sum(1) / np.maximum(support, 1), there + (support > 0)
        with np.errstate(invalid="ignore"):
            return total / there

    return {
        "f1_macro": lambda counts: f1(counts, 0),
        "f1_micro": lambda counts: f1(counts, None),
        "map": mean_average_precision,
    }
