"""What the best model of a run said of each example, read from `predictions.jsonl`, and the scores that follow."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tltrain import bootstrap, metrics
from tltrain.errors import WorkdirError

NUM_BINS = 15  # of confidence, of equal width, as in Guo et al. 2017 (arXiv 1706.04599)


class Predictions(NamedTuple):
    """The readable examples of one split.

    `labels` is int `[N]`, `probabilities` float64 `[N, num_classes]`, `losses` float64 `[N]` in nats.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class, int `[N]`."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> np.ndarray:
        """The probability of that class, float64 `[N]`."""
        return self.probabilities.max(1)

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


def read(workdir: Path) -> dict[str, Predictions]:
    """The predictions of a run by split, val first.

    Raises:
        WorkdirError: the file is missing or damaged.
    """
    path = workdir / "predictions.jsonl"
    rows: dict[str, list] = {"val": [], "test": []}
    try:
        with path.open() as file:
            for line in file:
                entry = json.loads(line)
                rows[entry["split"]].append([entry[key] for key in ("id", "label", "probabilities", "loss")])
        return {split: _of_rows(found) for split, found in rows.items() if found}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise WorkdirError(
            f"cannot read the predictions; {type(error).__name__}: {error}; in {path}; remove the workdir and run again"
        ) from error


def _of_rows(rows):
    ids, labels, probabilities, losses = zip(*rows, strict=True)
    return Predictions(ids, np.asarray(labels, int), np.asarray(probabilities, float), np.asarray(losses, float))


def with_intervals(found: Predictions) -> dict[str, bootstrap.Estimate]:
    """`accuracy`, `loss`, `auc` where there are two classes, and `ece`, with 95 % intervals over the examples.

    `ece`, the expected calibration error over `NUM_BINS` bins, is never negative: its resamples lie above it on
    average, and with them its interval.
    """
    n = len(found.ids)
    statistics = {"accuracy": bootstrap.mean(found.correct.astype(float)), "loss": bootstrap.mean(found.losses)}
    if found.probabilities.shape[1] == 2:
        negative, positive = np.log(np.maximum(found.probabilities, np.finfo(float).tiny)).T
        statistics["auc"] = metrics.auc_of_resamples(positive - negative, found.labels == 1)
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


def confusion(found: Predictions) -> np.ndarray:
    """Counts int64 `[num_classes, num_classes]`, true class first."""
    counts = np.zeros((found.probabilities.shape[1],) * 2, np.int64)
    np.add.at(counts, (found.labels, found.predicted), 1)
    return counts


def baseline(confusion: Sequence[Sequence[int]]) -> tuple[int, float]:
    """The largest class and the accuracy of always answering it, over the examples that `confusion` counts."""
    counts = np.sum(confusion, axis=1)
    return int(counts.argmax()), float(counts.max() / counts.sum())


def by_class(counts: np.ndarray) -> list[OfClass]:
    """One entry a class, from a confusion matrix, true class first."""

    def share(part, whole):
        return part / whole if whole else float("nan")

    return [
        OfClass(
            share(counts[i, i], counts[:, i].sum()),
            share(counts[i, i], counts[i].sum()),
            share(2 * counts[i, i], counts[i].sum() + counts[:, i].sum()),
            int(counts[i].sum()),
        )
        for i in range(len(counts))
    ]


def mistakes(found: Predictions, most: int) -> np.ndarray:
    """Rows of the wrong answers given with most confidence, at most `most`, int."""
    wrong = np.flatnonzero(~found.correct)
    return wrong[np.argsort(-found.confidence[wrong], kind="stable")][:most]
