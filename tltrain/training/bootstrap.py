"""95 % intervals by the percentile bootstrap (Efron 1979), over seeds or over the examples of a split.

A resample is a vector of counts, how often it draws each of the n values, so that means, calibration errors and areas
under curves of all resamples are a few operations on arrays. Own code, since scipy and scikit-learn (0.7 s to import)
call a score once for each resample.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

_NUM_RESAMPLES = (400, 2_000)  # fewest, of very many values, and most
_MAX_DRAWS = 8_000_000  # in all, where that leaves the fewest resamples: a second or so
_MAX_COUNTS = 1 << 22  # held in memory at once

Statistic = Callable[[np.ndarray], np.ndarray]  # counts float64 [R, n], rows that sum to n -> values [R]


class Estimate(NamedTuple):
    """A statistic of all values, and its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


def estimates(statistics: Sequence[Statistic], n: int, columns: int = 1) -> list[Estimate]:
    """Each statistic of `n` values, with the interval it has when they are drawn again with replacement.

    The draws are always the same. A resample of which a statistic is NaN, as an area under a curve is where one class
    is absent, does not count. No interval for fewer than two values, and of a few it is too narrow: three seeds can do
    no better than their range. Where each value is many `columns`, fewer are drawn.
    """
    if not n:
        return [Estimate(*[float("nan")] * 3) for _ in statistics]

    def of_all(counts):
        return [statistic(counts) for statistic in statistics]

    drawn = zip(*map(of_all, _resamples(n, columns)), strict=True)  # `map` keeps no counts while the next are made
    return [
        Estimate(float(statistic(np.ones((1, n)))[0]), *_percentiles(np.concatenate(values), n))
        for statistic, values in zip(statistics, drawn, strict=True)
    ]


def mean(values: np.ndarray) -> Statistic:
    """The mean of `values` float or bool `[n]`."""
    # a matrix product would wait for the threads of BLAS where the cores are busy
    return lambda counts: np.einsum("rn,n->r", counts, values) / len(values)


def _percentiles(values, n):
    values = values[np.isfinite(values)]
    if n < 2 or not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _resamples(n: int, columns: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    fewest, most = _NUM_RESAMPLES
    total, rows = min(max(_MAX_DRAWS // (n * columns), fewest), most), max(_MAX_COUNTS // n, 1)
    for done in range(0, total, rows):
        size = min(rows, total - done)
        yield _counts(rng.integers(0, n, (size, n), np.int32))


def _counts(drawn):
    size, n = drawn.shape
    places = drawn + np.arange(0, size * n, n)[:, None]
    return np.bincount(places.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
