"""What every task is: all that steps, evaluation, records and exports know of labels and logits."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import numpy as np
from ml_collections import ConfigDict

from tltrain.data.split import Split
from tltrain.training.bootstrap import Estimate
from tltrain.training.scores import OfClass


@dataclass(frozen=True)
class Task(abc.ABC):
    """What labels are, as a config and its data say; a value that equals others of equal content.

    Shapes: `B` rows of a batch, `N` examples, `D` outputs of the head, `K` classes.
    """

    class_names: tuple[str, ...]  # () where a label is a number

    name: ClassVar[str]  # as `config.task` has it
    metric: ClassVar[str]  # what an epoch is told by beside its loss
    larger_is_better: ClassVar[bool] = True  # of `metric`
    unit: ClassVar[str]  # of the loss
    exclusive: ClassVar[bool] = False  # whether of several outputs one is right
    output: ClassVar[str] = "probabilities"  # what an export calls its answers

    @classmethod
    @abc.abstractmethod
    def of(cls, config: ConfigDict, class_names: tuple[str, ...], train: Split | None) -> Self:
        """That of a whole config; without the training split it is good for evaluation alone.

        Raises:
            ConfigError: keys that labels of this kind cannot have.
        """

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """Units of the head."""

    @property
    @abc.abstractmethod
    def label(self) -> jax.ShapeDtypeStruct:
        """The label of one example."""

    @abc.abstractmethod
    def losses(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Float32 `[B]` of float32 `logits` `[B, D]`, as they are evaluated."""

    @abc.abstractmethod
    def train_losses(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Float32 `[B]`, as they are trained on: with label smoothing and class weights."""

    @abc.abstractmethod
    def score(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Float32 `[B]`, whose mean is `metric`."""

    @abc.abstractmethod
    def activation(self, nn: Any, logits: Any) -> Any:
        """What an export answers, float32: `[B, K]` of probabilities, or `[B, 1]` of numbers.

        `nn` is `jax.nn` or `keras.ops`, of which it takes `sigmoid` and `softmax`.
        """

    @abc.abstractmethod
    def said(self, logits: np.ndarray) -> np.ndarray:
        """The same on the host, in float64."""

    @abc.abstractmethod
    def summary(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Scores of a whole split beside loss and `metric`."""

    @abc.abstractmethod
    def detail(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """`baseline`, the `answer` that needs no model and its `metric`, and what else `report.json` has of a split."""

    def by_class(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, OfClass]:
        """How well each class is told from the others; of no classes nothing."""
        return {}

    @abc.abstractmethod
    def line(self, logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
        """What `predictions.jsonl` has of one example: `label`, what the model said of it, and the `loss`."""

    @abc.abstractmethod
    def answer(self, logits: np.ndarray) -> dict[str, Any]:
        """What `predict` says of one example `[D]`, as JSON."""

    @abc.abstractmethod
    def ridge(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Targets float64 `[N, D]` and weights float64 `[N]` of least squares in place of the loss.

        The target of a class is above 0 where it is there.
        """

    def same(self, answers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Whether two results `[N, K]` of `activation` choose the same, bool `[N]`."""
        return answers.argmax(-1) == others.argmax(-1)

    @classmethod
    def ranked_by(cls, best: str) -> str:
        """The score on val by which epochs are ranked where `checkpoint.best` is `best`."""
        return cls.metric if best == "accuracy" else "loss"

    def rank(self, scores: dict[str, float], best: str) -> float:
        """What ranks an epoch by its `scores` on val, larger is better; one that is not defined is the lowest."""
        score = scores[self.ranked_by(best)]
        if score is None or np.isnan(score):
            return -np.inf
        return -score if self.ranked_by(best) == "loss" else score

    @staticmethod
    @abc.abstractmethod
    def answers(lines: Sequence[dict[str, Any]]) -> Any:
        """What `line` made of the examples of one split, as one value: `ids`, `labels`, `losses`, what was said."""

    @staticmethod
    @abc.abstractmethod
    def each(found: Any) -> np.ndarray:
        """Of such a value what `metric` is the mean of, float64 `[N]`."""

    @staticmethod
    @abc.abstractmethod
    def with_intervals(found: Any) -> dict[str, Estimate]:
        """The scores of such a value with 95 % intervals over the examples; `metric` is the first."""


# how scores are called where they are shown, and which are shares of one, shown in percent
LABELS = {"auc": "AUC", "ece": "ECE", "f1_macro": "macro F1", "f1_micro": "micro F1", "map": "mAP"}
LABELS |= {"mae": "MAE", "r2": "R2"}
SHARES = ("accuracy", "ece", "f1_macro", "f1_micro", "map")


def rounded(values: np.ndarray) -> list[float]:
    """To six digits, as JSON."""
    return [float(f"{value:.6g}") for value in values]
