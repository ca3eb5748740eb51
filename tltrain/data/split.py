"""What a data set is to the rest of tltrain: splits with random access to encoded examples, and the class names."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tltrain.data.kinds.kind import Kind, Tokens
from tltrain.data.names import Names


@dataclass(frozen=True)
class Split:
    """Examples of one split in a fixed order.

    `ids` name them (a path below the folder, or shard and position), `labels` are as `Data` says, `read(i)` gives the
    encoded bytes of one, of which `kind` makes rows, `fingerprint` is a hash of their bytes in this order, `files()`
    has the sha256 of each file they are in, by name. Of a split of which a few are `drawn` (positions, int32), these
    alone count; what is stored is stored of all, so that other draws find it.
    """

    expression: str
    ids: Names
    labels: np.ndarray
    read: Callable[[int], bytes]
    kind: Kind
    fingerprint: str
    files: Callable[[], Mapping[str, bytes]] = dict
    drawn: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """Positions of the examples that count, int32 `[num_examples]`, in the order of the split."""
        return np.arange(len(self.ids), dtype=np.int32) if self.drawn is None else self.drawn

    @property
    def num_examples(self) -> int:
        """Number of examples that count."""
        return len(self.ids) if self.drawn is None else len(self.drawn)

    @functools.cached_property
    def tokens(self) -> Tokens:
        """Its examples as rows of tokens, where its kind makes such of them; all of them, read once."""
        return self.kind.tokens(self.read, len(self.ids))

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Examples that count of each class, int `[num_classes]`; of several labels each counts for all its classes."""
        labels = self.labels[self.rows]
        if labels.dtype == np.bool_:
            return labels.sum(0)
        return np.bincount(labels, minlength=num_classes) if num_classes else np.zeros(0, int)


@dataclass(frozen=True)
class Data:
    """`splits` by role (`train`, `val`, perhaps `test`), and the names of the classes.

    Labels are what `task` says: `"classification"`, int32 `[N]`, indices of `class_names`; `"multi_label"`, bool
    `[N, num_classes]`; `"regression"`, float32 `[N]`, where there are no classes.

    `left_out` names what lies beside the examples and is none, by the reason; `sub_folders` are those that are splits
    by themselves.
    """

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    task: str = "classification"
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sub_folders: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """That of the examples of all splits."""
        return next(iter(self.splits.values())).kind
