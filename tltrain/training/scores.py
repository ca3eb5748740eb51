"""What a model said of each example of a split, and the scores that follow."""

from typing import NamedTuple, Self

import numpy as np

from tltrain.data.names import Names
from tltrain.training import bootstrap, metrics

MOST_SHOWN = 100  # classes of which every probability and every pair confused is kept
NUM_BINS = 15  # of confidence, of equal width, as in Guo et al. 2017 (arXiv 1706.04599)


class Predictions(NamedTuple):
    """The readable examples of one split.

    `labels` and `predicted`, the most probable class, are int `[N]`, `confidence`, its probability, and `losses`, in
    nats, float64 `[N]`, and so are the `log_odds` of class 1 where there are two.
    """

    ids: Names
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    losses: np.ndarray
    log_odds: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        ids: Names,
        labels: np.ndarray,
        probabilities: np.ndarray,
        losses: np.ndarray,
        classes: np.ndarray | None = None,
    ) -> Self:
        """From `probabilities` float64 `[N, K]` of every class, or of the `classes` int `[N, K]`, likeliest first."""
        predicted, odds = probabilities.argmax(1) if classes is None else classes[:, 0].copy(), None
        if probabilities.shape[1] == 2:
            negative, positive = np.log(np.maximum(probabilities, np.finfo(float).tiny)).T
            odds = positive - negative
        return cls(ids, labels, predicted, probabilities.max(1), losses, odds)

    @property
    def correct(self) -> np.ndarray:
        """Whether it is the true one, bool `[N]`."""
        return self.predicted == self.labels


class OfClass(NamedTuple):
    """How well one class is told from the others; NaN where there is nothing to divide by."""

    precision: float
    recall: float
    f1: float
    support: int


class Bin(NamedTuple):
    """The examples whose confidence lies in one bin; the means are NaN where there are none."""

    low: float
    high: float
    size: int
    confidence: float
    accuracy: float


def with_intervals(found: Predictions) -> dict[str, bootstrap.Estimate]:
    """`accuracy`, `loss`, `auc` where there are two classes, and `ece`, with 95 % intervals over the examples.

    `ece`, the expected calibration error over `NUM_BINS` bins, is never negative: its resamples lie above it on
    average, and with them its interval.
    """
    n = len(found.ids)
    statistics = {"accuracy": bootstrap.mean(found.correct.astype(float)), "loss": bootstrap.mean(found.losses)}
    if found.log_odds is not None:
        statistics["auc"] = metrics.auc_of_resamples(found.log_odds, found.labels == 1)
    bins = _bin_of(found.confidence)
    order = np.argsort(bins, kind="stable")
    gaps, starts = (found.correct - found.confidence)[order], np.unique(bins[order], return_index=True)[1]
    statistics["ece"] = lambda counts: np.abs(np.add.reduceat(counts[:, order] * gaps, starts, 1)).sum(1) / n
    return dict(zip(statistics, bootstrap.estimates(list(statistics.values()), n), strict=True))


def _bin_of(confidence):
    """Bins are open below and closed above, `(low, high]`."""
    return np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)


def reliability(found: Predictions) -> list[Bin]:
    """Accuracy and mean confidence in each of `NUM_BINS` bins of confidence of equal width (Guo et al. 2017)."""
    index = _bin_of(found.confidence)
    made = []
    for i in range(NUM_BINS):
        inside = index == i
        size = int(inside.sum())
        means = [float(v[inside].mean()) if size else float("nan") for v in (found.confidence, found.correct)]
        made.append(Bin(i / NUM_BINS, (i + 1) / NUM_BINS, size, *means))
    return made


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int64 `[num_classes, num_classes]` of pairs of int `[N]`, true class first."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def confused(labels: np.ndarray, predicted: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The pairs of a true and another predicted class that are most frequent, at most `most`, each with its count."""
    wrong = labels != predicted
    pairs, counts = np.unique(np.stack([labels, predicted])[:, wrong], axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(int(pairs[0, i]), int(pairs[1, i]), int(counts[i])) for i in order]


def baseline(labels: np.ndarray) -> tuple[int, float]:
    """The largest class and the accuracy of always answering it, over the examples of `labels` int `[N]`."""
    counts = np.bincount(labels)
    return int(counts.argmax()), float(counts.max() / len(labels))


def by_class(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> list[OfClass]:
    """One entry a class, from true and predicted classes int `[N]`."""
    of_class, answers, right = (
        np.bincount(classes, minlength=num_classes) for classes in (labels, predicted, labels[labels == predicted])
    )
    with np.errstate(invalid="ignore"):
        columns = (right / answers, right / of_class, 2 * right / (of_class + answers), of_class)
    return [OfClass(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def hardest(classes: list[tuple[str, OfClass]], most: int) -> list[tuple[str, OfClass]]:
    """Of names with their scores those of lowest F1, lowest first, at most `most`; without examples a class is last."""
    return sorted(classes, key=lambda entry: np.nan_to_num(entry[1].f1, nan=2))[:most]


def mistakes(found: Predictions, most: int) -> np.ndarray:
    """Rows of the wrong answers given with most confidence, at most `most`, int."""
    wrong = np.flatnonzero(~found.correct)
    return wrong[np.argsort(-found.confidence[wrong], kind="stable")][:most]
