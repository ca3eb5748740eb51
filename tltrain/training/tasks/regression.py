"""A number: squared error, absolute error, and the share of the variance that is explained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain.data.names import Names
from tltrain.data.split import Split
from tltrain.errors import ConfigError
from tltrain.training import bootstrap
from tltrain.training.tasks.task import Task


class Predictions(NamedTuple):
    """The readable examples of one split: `labels` and `predicted` float64 `[N]`, `losses`, squared errors, `[N]`."""

    ids: Names
    labels: np.ndarray
    predicted: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class Regression(Task):
    """A label is a float32; the one output of the head is the answer."""

    name = "regression"
    metric = "mae"
    larger_is_better = False
    output = "prediction"
    unit = "squared error"

    @classmethod
    def of(cls, config: ConfigDict, class_names: tuple[str, ...], train: Split | None) -> Self:
        """That of a config."""
        allowed = {"model.head": "auto", "loss.label_smoothing": 0.0, "loss.class_weights": None}
        given = config_lib.flatten(config)
        for key, value in allowed.items():
            if given[key] != value:
                raise ConfigError(f"{key} = {given[key]!r}, allowed: {value!r} where a label is a number")
        for name in config_lib.PHASES:
            if (optimizer := config[name].optimizer) in ("logreg", "knn"):
                raise ConfigError(f"{name}.optimizer = {optimizer!r}, allowed: 'ridge' where a label is a number")
        return cls(class_names)

    @property
    def num_outputs(self) -> int:
        """One."""
        return 1

    @property
    def label(self) -> jax.ShapeDtypeStruct:
        """A number."""
        return jax.ShapeDtypeStruct((), np.float32)

    def losses(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Squared errors."""
        return jnp.square(logits[:, 0] - label)

    def train_losses(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Squared errors."""
        return self.losses(logits, label)

    def score(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Absolute errors."""
        return jnp.abs(logits[:, 0] - label)

    def activation(self, nn: Any, logits: Any) -> Any:
        """As it is."""
        return logits

    def said(self, logits: np.ndarray) -> np.ndarray:
        """As it is."""
        return logits.astype(np.float64)

    def summary(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """`r2`, the share of the variance of the labels that is explained; NaN where they are all equal."""
        one = np.ones((1, len(labels)))
        return {"r2": float(_explained(labels.astype(float), self.said(logits)[:, 0])(one)[0])}

    def detail(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """How good the median of the labels always answered is."""
        middle = float(np.median(labels))
        return {"baseline": {"answer": f"{middle:.6g}", "mae": float(np.abs(labels.astype(float) - middle).mean())}}

    def line(self, logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
        """What was `predicted`."""
        predicted, wanted = float(logits[0]), float(label)
        return {"label": wanted, "predicted": predicted, "loss": (predicted - wanted) ** 2}

    def answer(self, logits: np.ndarray) -> dict[str, Any]:
        """The number."""
        return {"predicted": float(f"{float(logits[0]):.6g}")}

    def ridge(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers."""
        return labels[:, None].astype(np.float64), np.ones(len(labels))

    def same(self, answers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Equal but for rounding."""
        return np.isclose(answers, others, rtol=1e-3, atol=1e-3)[:, 0]

    @classmethod
    def ranked_by(cls, best: str) -> str:
        """The loss, which has the order of `r2`: a number has no accuracy."""
        return "loss"

    @staticmethod
    def answers(lines: Sequence[dict[str, Any]]) -> Predictions:
        """Numbers."""
        columns = (np.asarray([line[key] for line in lines], float) for key in ("label", "predicted", "loss"))
        return Predictions(tuple(line["id"] for line in lines), *columns)

    @staticmethod
    def each(found: Predictions) -> np.ndarray:
        """Absolute errors."""
        return np.abs(found.predicted - found.labels)

    @staticmethod
    def with_intervals(found: Predictions) -> dict[str, bootstrap.Estimate]:
        """Mean absolute and mean squared error, explained variance."""
        statistics = {
            "mae": bootstrap.mean(Regression.each(found)),
            "loss": bootstrap.mean(found.losses),
            "r2": _explained(found.labels, found.predicted),
        }
        made = bootstrap.estimates(list(statistics.values()), len(found.ids))
        return dict(zip(statistics, made, strict=True))


def _explained(labels: np.ndarray, predicted: np.ndarray) -> bootstrap.Statistic:
    """1 minus the squared errors over the squared distances from the mean of the resample."""
    errors, centred = np.square(predicted - labels), labels - labels.mean()

    def share(counts):
        squares, n = counts @ np.square(centred), counts.sum(1)
        around = squares - np.square(counts @ centred) / n
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(around > 1e-12 * squares, 1 - counts @ errors / around, np.nan)

    return share
