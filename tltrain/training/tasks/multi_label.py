"""Several classes at once, or none: a sigmoid each, F1 over classes and over answers, mean average precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from tltrain.data.split import Split
from tltrain.errors import ConfigError
from tltrain.training import bootstrap
from tltrain.training.scores import OfClass
from tltrain.training.tasks.classification import named_weights
from tltrain.training.tasks.task import Task, rounded


class Predictions(NamedTuple):
    """The readable examples of one split: `labels` bool `[N, K]`, `probabilities` float64 `[N, K]`, `losses` `[N]`."""

    ids: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """Classes more probable than not, bool `[N, K]`."""
        return self.probabilities > 0.5


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
        if setting is not None and train is not None:
            counts = train.class_counts(len(class_names))
            absent = train.num_examples - counts
            weights = (absent / counts).astype(np.float32) if setting == "auto" else named_weights(setting, class_names)
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

    def activation(self, logits: jax.Array) -> jax.Array:
        """A probability each."""
        return nn.sigmoid(logits)

    def said(self, logits: np.ndarray) -> np.ndarray:
        """A probability each."""
        return 1 / (1 + np.exp(-logits.astype(np.float64)))

    def summary(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """`f1_macro`, `f1_micro` and `map`, as of `with_intervals`."""
        one = np.ones((1, len(labels)))
        found = {name: statistic(one) for name, statistic in _statistics(labels, self.said(logits)).items()}
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
        """The label is the list of classes there are."""
        probabilities = self.said(logits[None])[0]
        right = np.maximum(np.where(label, probabilities, 1 - probabilities), np.finfo(np.float64).tiny)
        kept = {"label": np.flatnonzero(label).tolist(), "probabilities": rounded(probabilities)}
        return kept | {"loss": float(f"{-np.log(right).mean():.6g}")}

    def answer(self, logits: np.ndarray) -> dict[str, Any]:
        """The classes more probable than not, and the probability of each."""
        probabilities = self.said(logits[None])[0]
        named = dict(zip(self.class_names, rounded(probabilities), strict=True))
        return {"classes": [name for name, p in named.items() if p > 0.5], "probabilities": named}

    def ridge(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """1 where a class is, -1 where not."""
        return np.where(labels, 1.0, -1.0), np.ones(len(labels))

    @staticmethod
    def answers(lines: Sequence[dict[str, Any]]) -> Predictions:
        """Of every class."""
        probabilities = np.asarray([line["probabilities"] for line in lines], float)
        labels = np.zeros(probabilities.shape, bool)
        for row, line in zip(labels, lines, strict=True):
            row[line["label"]] = True
        losses = np.asarray([line["loss"] for line in lines], float)
        return Predictions(tuple(line["id"] for line in lines), labels, probabilities, losses)

    @staticmethod
    def each(found: Predictions) -> np.ndarray:
        """The share of classes that are told right."""
        return (found.predicted == found.labels).mean(1)

    @staticmethod
    def with_intervals(found: Predictions) -> dict[str, bootstrap.Estimate]:
        """Accuracy, loss, F1 over classes and over all answers, mean average precision."""
        statistics = {"accuracy": bootstrap.mean(MultiLabel.each(found)), "loss": bootstrap.mean(found.losses)}
        statistics |= _statistics(found.labels, found.probabilities)
        made = bootstrap.estimates(list(statistics.values()), len(found.ids))
        return dict(zip(statistics, made, strict=True))


def by_class(labels: np.ndarray, predicted: np.ndarray) -> list[OfClass]:
    """One entry a class, from bool `[N, K]` each."""
    right, answers, support = (labels & predicted).sum(0), predicted.sum(0), labels.sum(0)
    with np.errstate(invalid="ignore"):
        columns = (right / answers, right / support, 2 * right / (answers + support), support)
    return [OfClass(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _statistics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, bootstrap.Statistic]:
    """`f1_macro`, `f1_micro`, `map` of bool `labels` and `probabilities` `[N, K]`.

    A class that is neither there nor answered has an F1 of 0, as in scikit-learn; the mean of average precisions is
    over the classes that are there.
    """
    predicted = probabilities > 0.5
    right, either = (labels & predicted).astype(float), labels.astype(float) + predicted

    def f1(counts, axis):
        twice, total = 2 * counts @ right, counts @ either
        if axis is None:
            twice, total = twice.sum(1, keepdims=True), total.sum(1, keepdims=True)
        return (twice / np.maximum(total, 1)).mean(1)

    order = np.argsort(-probabilities, axis=0, kind="stable")
    ranked, falling = (np.take_along_axis(values, order, 0) for values in (labels, -probabilities))

    def mean_average_precision(counts):
        found = []
        for k in range(labels.shape[1]):
            drawn, equal = counts[:, order[:, k]], np.searchsorted(falling[:, k], falling[:, k], "right") - 1
            positive = drawn * ranked[:, k]  # precision is that of all that are as probable or more
            precision = np.cumsum(positive, 1)[:, equal] / np.maximum(np.cumsum(drawn, 1), 1)[:, equal]
            with np.errstate(invalid="ignore"):
                found.append((positive * precision).sum(1) / positive.sum(1))
        return np.nanmean(found, 0) if labels.any() else np.full(len(counts), np.nan)

    return {
        "f1_macro": lambda counts: f1(counts, 0),
        "f1_micro": lambda counts: f1(counts, None),
        "map": mean_average_precision,
    }
