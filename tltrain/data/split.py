"""What a data set is to the rest of tltrain: splits with random access to encoded images, and the class names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Split:
    """Examples of one split in a fixed order.

    `ids` name them (a path below the folder, or shard and position), `labels` is int32 `[N]`, `read(i)` gives the
    encoded bytes of one, `fingerprint` is a hash of their bytes in this order, `files` has the sha256 of each file they
    are in, by name. Of a split of which a few are `drawn` (positions, int32), these alone count; what is stored is
    stored of all, so that other draws find it.
    """

    expression: str
    ids: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[int], bytes]
    fingerprint: str
    files: Mapping[str, bytes] = field(default_factory=dict)
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
    """`splits` by role (`train`, `val`, perhaps `test`), and the class names that labels index.

    `left_out` names what lies beside the examples and is none, by the reason; `sub_folders` are those that are splits
    by themselves.
    """

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sub_folders: tuple[str, ...] = ()
