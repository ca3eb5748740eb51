"""What `data.splits` names: a split by its name, or percents of one; and which names mean which of a run's splits."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tltrain.errors import DataError

HELD_OUT = ("train[:80%]", "train[80%:]")  # what data.splits is where a config says nothing
ROLES = dict.fromkeys(("train", "training"), "train")
ROLES |= dict.fromkeys(("val", "valid", "validation", "dev"), "val") | dict.fromkeys(("test", "testing"), "test")
_PERCENT = re.compile(r"([^\[\]]+)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?")


def parse(expression: str, place: Path) -> tuple[str, int, int]:
    """Name, first and last percent of the split `expression` of what lies at `place`; raises DataError."""
    match = _PERCENT.fullmatch(re.sub(r"\s*([\[\]:%])\s*", r"\1", expression.strip()))
    start, stop = (int(match[2] or 0), int(match[3] or 100)) if match else (0, 0)
    if not match or not 0 <= start < stop <= 100:
        raise DataError(
            f"split {expression!r} cannot be read; of {place}; write 'train', 'train[:80%]' or 'train[80%:]'"
        )
    return match[1], start, stop


def resolved(expressions: tuple[str, ...], roles: Collection[str]) -> tuple[str, ...]:
    """`expressions`, or where they are the default and the data are divided into `roles` already, these as they are."""
    if expressions != HELD_OUT or "train" not in roles or not {"val", "test"} & set(roles):
        return expressions
    return (("train", "val") if "val" in roles else HELD_OUT) + (("test",) if "test" in roles else ())


class Ranked(NamedTuple):
    """`rows` in the order of their keys; those of one key are a group, which has one of `starts` and of `strata`."""

    rows: np.ndarray
    starts: np.ndarray
    strata: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, strata: np.ndarray) -> "Ranked":
        """From the key and the stratum of each row; a group is in the lowest of its strata."""
        rows = np.argsort(keys, kind="stable")
        ranked = keys[rows]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        return cls(rows, starts, np.minimum.reduceat(strata[rows], starts))

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Rows whose rank in their stratum lies in `[start, stop)` percent, in their order.

        Equal ones go by the first of their ranks.
        """
        sizes = np.diff(self.starts, append=len(self.rows))
        chosen = np.zeros(len(sizes), bool)
        for stratum in np.unique(self.strata):
            groups = np.flatnonzero(self.strata == stratum)
            ends = np.cumsum(sizes[groups])
            total, ranks = int(ends[-1]), ends - sizes[groups]
            chosen[groups] = (round(total * start / 100) <= ranks) & (ranks < round(total * stop / 100))
        return np.sort(self.rows[np.repeat(chosen, sizes)])
