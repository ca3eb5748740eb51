"""What a data set is to the rest of tltrain: splits with random access to encoded images, and the class names."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """Examples of one split in a fixed order.

    `ids` name them (a path below the folder, or shard and position), `labels` is int32 `[N]`, `read(i)` gives the
    encoded bytes of one, `fingerprint` changes when the examples do.
    """

    expression: str
    ids: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[int], bytes]
    fingerprint: str

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self.ids)


@dataclass(frozen=True)
class Data:
    """`splits` by role (`train`, `val`, perhaps `test`), and the class names that labels index."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
