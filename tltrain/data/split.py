"""What a data set is to the rest of tltrain: splits with random access to encoded images, and the class names."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """Examples of one split in a fixed order.

    `ids` name them (a path below the folder, or shard and position), `labels` is int32 `[N]`, `read(i)` gives the
    encoded bytes of one, `fingerprint` changes when the examples do. Of a split of which a few are `drawn` (positions,
    int32), these alone count; what is stored is stored of all, so that other draws find it.
    """

    expression: str
    ids: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[int], bytes]
    fingerprint: str
    drawn: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """Positions of the examples that count, int32 `[num_examples]`, in the order of the split."""
        return np.arange(len(self.ids), dtype=np.int32) if self.drawn is None else self.drawn

    @property
    def num_examples(self) -> int:
        """Number of examples that count."""
        return len(self.rows)

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Examples that count of each class, int `[num_classes]`."""
        return np.bincount(self.labels[self.rows], minlength=num_classes)


@dataclass(frozen=True)
class Data:
    """`splits` by role (`train`, `val`, perhaps `test`), and the class names that labels index."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
