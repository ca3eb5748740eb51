"""One class of several: cross entropy and accuracy; of two classes one sigmoid unit, and the area under the curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from tltrain.data.split import Split
from tltrain.errors import ConfigError
from tltrain.training import bootstrap, metrics, scores
from tltrain.training.tasks.task import Task, rounded

NUM_LIKELIEST = 10  # classes of an example whose probabilities are kept where there are very many


@dataclass(frozen=True)
class Classification(Task):
    """A label is the index of a class, int32."""

    sigmoid: bool  # one unit, the log odds of class 1
    smoothing: float
    class_weights: tuple[float, ...]

    name = "classification"
    metric = "accuracy"
    exclusive = True
    unit = "nats"

    @classmethod
    def of(cls, config: ConfigDict, class_names: tuple[str, ...], train: Split | None) -> Self:
        """That of a config."""
        head, count = config.model.head, len(class_names)
        if head == "sigmoid" and count != 2:
            raise ConfigError(
                f"model.head = 'sigmoid' has one unit for two classes, the data has {count}; use 'softmax'"
            )
        weights = class_weights(config.loss.class_weights, class_names, train)
        sigmoid = head == "sigmoid" or (head == "auto" and count == 2)
        return cls(class_names, sigmoid, config.loss.label_smoothing, tuple(weights.tolist()))

    @property
    def num_outputs(self) -> int:
        """One for each class, or one."""
        return 1 if self.sigmoid else len(self.class_names)

    @property
    def label(self) -> jax.ShapeDtypeStruct:
        """A class."""
        return jax.ShapeDtypeStruct((), np.int32)

    def losses(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Cross entropy in nats."""
        return cross_entropy(logits, label)

    def train_losses(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Cross entropy in nats of smoothed labels, times the weight of the class."""
        return cross_entropy(logits, label, self.smoothing) * jnp.asarray(self.class_weights, jnp.float32)[label]

    def score(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """1 where the most probable class is the right one."""
        predicted = logits[:, 0] > 0 if logits.shape[-1] == 1 else logits.argmax(-1)
        return (predicted.astype(jnp.int32) == label).astype(jnp.float32)

    def activation(self, nn: Any, logits: Any) -> Any:
        """Probabilities that sum to one."""
        return nn.sigmoid(logits * np.asarray([-1, 1], np.float32)) if self.sigmoid else nn.softmax(logits)

    def said(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities."""
        return metrics.probabilities(logits)

    def summary(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """`auc` of two classes."""
        if logits.shape[1] > 2:
            return {}
        return {"auc": metrics.auc(metrics.binary_score(logits), labels == 1)}

    def detail(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """How good the most frequent class always answered is; of not too many classes `confusion`, true first."""
        largest, share = scores.baseline(labels)
        found: dict[str, Any] = {"baseline": {"answer": self.class_names[largest], "accuracy": share}}
        if len(self.class_names) <= scores.MOST_SHOWN:
            found["confusion"] = scores.confusion(labels, metrics.likeliest(logits), len(self.class_names)).tolist()
        return found

    def by_class(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, scores.OfClass]:
        """One entry a class."""
        found = scores.by_class(labels, metrics.likeliest(logits), len(self.class_names))
        return dict(zip(self.class_names, found, strict=True))

    def line(self, logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
        """Also `classes` where there are more than `scores.MOST_SHOWN`: the likeliest, whose probabilities are kept."""
        probabilities = self.said(logits[None])[0]
        loss = -np.log(max(probabilities[label], np.finfo(np.float64).tiny))
        line: dict[str, Any] = {"label": int(label)}
        if len(probabilities) > scores.MOST_SHOWN:
            classes = np.argsort(-probabilities, kind="stable")[:NUM_LIKELIEST]
            line["classes"], probabilities = classes.tolist(), probabilities[classes]
        return line | {"probabilities": rounded(probabilities), "loss": float(f"{loss:.6g}")}

    def answer(self, logits: np.ndarray) -> dict[str, Any]:
        """The most probable class, and the probability of each."""
        probabilities = self.said(logits[None])[0]
        named = dict(zip(self.class_names, rounded(probabilities), strict=True))
        return {"class": self.class_names[probabilities.argmax()], "probabilities": named}

    def ridge(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """1 for the class, -1 for others."""
        right = labels[:, None] == (np.ones(1) if self.sigmoid else np.arange(self.num_outputs))
        return np.where(right, 1.0, -1.0), np.asarray(self.class_weights)[labels]

    @staticmethod
    def answers(lines: Sequence[dict[str, Any]]) -> scores.Predictions:
        """Of every class, or the likeliest."""
        ids, labels, probabilities, losses = zip(
            *([line[key] for key in ("id", "label", "probabilities", "loss")] for line in lines), strict=True
        )
        classes = [line["classes"] for line in lines] if "classes" in lines[0] else None
        return scores.Predictions.of(
            ids,
            np.asarray(labels, int),
            np.asarray(probabilities, float),
            np.asarray(losses, float),
            None if classes is None else np.asarray(classes, int),
        )

    @staticmethod
    def each(found: scores.Predictions) -> np.ndarray:
        """1 where it is right."""
        return found.correct.astype(float)

    @staticmethod
    def with_intervals(found: scores.Predictions) -> dict[str, bootstrap.Estimate]:
        """Accuracy, loss, AUC of two classes, calibration error."""
        return scores.with_intervals(found)


def cross_entropy(logits: jax.Array, label: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """`[B]` in nats of float32 `logits` `[B, D]` for int32 `label` `[B]`: binary where `D` is 1."""
    if logits.shape[-1] == 1:
        target = label.astype(jnp.float32) * (1 - smoothing) + smoothing / 2
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], target)
    target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, target)


def class_weights(setting: Any, class_names: tuple[str, ...], train: Split | None) -> np.ndarray:
    """Factor of the loss by class, float32 `[K]`, for `config.loss.class_weights`; ones without a training split.

    None gives ones; `"auto"` the inverse of each class' frequency in train, with mean 1 over the training examples; a
    dict gives its own numbers, 1 where it names no number.

    Raises:
        ConfigError: the dict names a class that does not exist, or leaves no class with a weight.
    """
    num_classes = len(class_names)
    if setting is None or train is None:
        return np.ones(num_classes, np.float32)
    if setting == "auto":
        counts = train.class_counts(num_classes)
        return (counts.sum() / (num_classes * counts)).astype(np.float32)
    return named_weights(setting, class_names)


def named_weights(setting: dict[str, float], class_names: tuple[str, ...]) -> np.ndarray:
    """Float32 `[K]`: the numbers of a dict, 1 where it names none; raises ConfigError as `class_weights` does."""
    if unknown := sorted(set(setting) - set(class_names)):
        raise ConfigError(f"loss.class_weights names {unknown}, allowed: {', '.join(class_names)}")
    weights = np.asarray([setting.get(name, 1.0) for name in class_names], np.float32)
    if not weights.any():
        raise ConfigError("loss.class_weights are 0 for every class, so nothing is learned; in the config; raise some")
    return weights
