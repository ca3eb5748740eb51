"""Metrics as sums and counts: batches of any size and mask add up to the exact figures of a split."""

import dataclasses
from collections.abc import Callable, Iterable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_ROWS = 4096  # whose probabilities are in memory at a time where one figure of each is wanted


@flax.struct.dataclass
class Metrics:
    """Sums over examples: `loss` and `score` float32 `[]`, over the int32 `count` of them."""

    loss: jax.Array
    score: jax.Array
    count: jax.Array


def of_batch(losses: jax.Array, scores: jax.Array, mask: jax.Array) -> Metrics:
    """Sums of one batch: `losses` and `scores` float32 `[B]`, counted where `mask` `[B]`."""
    loss, score = (jnp.where(mask, values, 0.0).sum() for values in (losses, scores))
    return Metrics(loss, score, mask.sum(dtype=jnp.int32))


@dataclasses.dataclass
class Total:
    """Running total on the host, its sums in float64; `dataclasses.asdict` gives its state as JSON."""

    loss: float = 0.0
    score: float = 0.0
    count: int = 0

    def add(self, metrics: Metrics) -> None:
        """Adds one batch."""
        self.loss += float(metrics.loss)
        self.score += float(metrics.score)
        self.count += int(metrics.count)

    @classmethod
    def sum(cls, parts: Iterable["Total"]) -> "Total":
        """That of all `parts`."""
        of_each = zip(*map(dataclasses.astuple, parts), strict=True)
        return cls(*map(sum, of_each))

    def summary(self, metric: str) -> dict[str, float]:
        """The means of losses and scores, which are those of `metric`; NaN where nothing was counted."""
        count = self.count or float("nan")
        return {"loss": self.loss / count, metric: self.score / count}


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Of each class, float64 `[B, num_classes]`, from logits `[B, D]`: two classes where `D` is 1."""
    wide = logits.astype(np.float64)
    if wide.shape[1] == 1:
        wide = np.concatenate([np.zeros_like(wide), wide], 1)
    shares = np.exp(wide - wide.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def likeliest(logits: np.ndarray) -> np.ndarray:
    """The class of the highest of `probabilities`, int64 `[B]`; of very many rows these are never there at once."""
    found = np.empty(len(logits), np.int64)
    for start in range(0, len(logits), _ROWS):
        found[start : start + _ROWS] = probabilities(logits[start : start + _ROWS]).argmax(1)
    return found


def binary_score(logits: np.ndarray) -> np.ndarray:
    """Log odds of class 1 `[B]` from logits `[B, 1]` or `[B, D]` (of class 1 against class 0)."""
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of `scores` float `[N]` for `positive` bool `[N]`, ties counted half.

    The share of (positive, negative) pairs in right order (Mann-Whitney U); NaN where one class is absent.
    """
    return float(auc_of_resamples(scores, positive)(np.ones((1, len(scores))))[0])


def auc_of_resamples(scores: np.ndarray, positive: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function of counts float64 `[R, N]`, how often each example stands in each resample, to their `auc` `[R]`."""
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], positive[order]
    below, above = (np.searchsorted(ranked[~positive], ranked[positive], side) for side in ("left", "right"))

    def areas(counts):
        counts = counts[:, order]
        negatives = np.pad(np.cumsum(counts[:, ~positive], 1), ((0, 0), (1, 0)))
        weights = counts[:, positive]
        in_order = (weights * (negatives[:, below] + negatives[:, above]) / 2).sum(1)
        with np.errstate(invalid="ignore"):
            return in_order / (weights.sum(1) * negatives[:, -1])

    return areas
