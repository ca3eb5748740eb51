"""Splits -> batches. The batch at (epoch, i) is a pure function of (seed, epoch, i), never of history.

A batch is `{"inputs": [B, ...], "label": [B, ...], "mask": bool [B], "index": int32 [B]}`; `inputs` are rows of
examples as their kind makes them, or stored activations: an array, a dict of arrays, or a packed batch where rows are
of different lengths, see `packing`. `mask` is False where a row repeats an example to fill the last batch, or its
example cannot be read.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tltrain.data import packing
from tltrain.data.split import Split
from tltrain.data.tensorflow import import_tensorflow
from tltrain.errors import DataError, reason_of
from tltrain.runtime import console, exchange, hosts

Batch = dict[str, Any]


def num_batches(num_examples: int, batch_size: int) -> int:
    """Batches that hold every example once."""
    return -(-num_examples // batch_size)


def rows(
    num_examples: int, batch_size: int, shuffle: tuple[int, int] | None = None, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Which example stands in which row of an epoch, from batch `first` on.

    Args:
        num_examples: N.
        batch_size: B.
        shuffle: `(seed, epoch)` of a random order, or None for the order of the split.
        first: number of batches to leave out.

    Returns:
        `(index, mask)`, int32 and bool `[num_batches - first, B]`. The last batch is filled with examples from the
        beginning of the epoch, masked: rows of real examples, so that statistics of the batch are not spoilt.
    """
    shape = (num_batches(num_examples, batch_size), batch_size)
    index, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    mask.reshape(-1)[:num_examples] = True
    order = index.reshape(-1)[:num_examples]
    order[:] = np.arange(num_examples, dtype=np.int32)
    if shuffle is not None:
        np.random.default_rng(shuffle).shuffle(order)
    index.reshape(-1)[num_examples:] = np.resize(order, index.size - num_examples)
    return index[first:], mask[first:]


class Corrupt:
    """The unreadable examples of a split: each is named once, and too many of them end the run.

    Of several processes the first to meet one names it; `indices` are those that this one met.
    """

    def __init__(self, split: Split, limit: float, warn: Callable[[str], None]) -> None:
        self.split, self.limit, self.warn = split, limit, warn
        self.indices: set[int] = set()
        self._of_all = 0  # how many any process met, as far as this one knows
        self._lock = threading.Lock()

    def add(self, index: int, reason: str) -> None:
        """Notes one; safe to call from many threads."""
        with self._lock:
            if index in self.indices:
                return
            self.indices.add(index)
            is_new = True
            if hosts.count() > 1:
                key = f"unreadable/{self.split.expression}"
                is_new = exchange.increment(f"{key}/{index}") == 1
                self._of_all = exchange.increment(f"{key}/all", int(is_new))
            if is_new:
                self.warn(f"skipped {self.split.ids[index]}: {reason}")

    def check(self) -> None:
        """Raises DataError where more than `limit`, a share of the split, are unreadable, or all are."""
        count = max(self._of_all, len(self.indices))
        if count == len(self.split.ids) > 0:
            raise DataError(
                f"none of {len(self.split.ids)} {self.split.kind.name} can be read; in {self.split.expression}: "
                f"{self.split.ids[0]} ...; see what is said of each"
            )
        if count > self.limit * len(self.split.ids):
            names = ", ".join(self.split.ids[i] for i in sorted(self.indices)[:5])
            raise DataError(
                f"{count} of {len(self.split.ids)} {self.split.kind.name} cannot be read; in "
                f"{self.split.expression}: {names}; repair or remove them, or raise data.max_corrupt = {self.limit}"
            )


def from_examples(
    split: Split, index: np.ndarray, mask: np.ndarray, corrupt: Corrupt, epoch: int | None = None
) -> Iterator[Batch]:
    """Batches of the rows `index`, `mask` `[num_batches, B]` of examples, decoded by a parallel `tf.data` pipeline.

    With an `epoch` each is varied at random, as its kind does it.

    Raises:
        DataError: more unreadable examples than `corrupt` allows, or what `split.read` raises of this class; whatever
            else it or the decoder raises is an unreadable example.
    """
    tf = import_tensorflow()
    leaves, tree = jax.tree.flatten(split.kind.shapes())
    blank = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
    index_of_row, mask_of_row = index.reshape(-1), mask.reshape(-1)  # TensorFlow would keep copies of them
    failed: list[DataError] = []

    def load(row):  # raises nothing: TensorFlow would make another error of it, and may wait for ever
        i = index_of_row[row]
        try:
            if not failed:
                key = None if epoch is None else (epoch, int(i))
                return *jax.tree.leaves(split.kind.row(split.read(i), key)), i, mask_of_row[row]
        except DataError as error:
            failed.append(error)
        except Exception as error:
            corrupt.add(int(i), reason_of(error))
        return *blank, i, np.False_

    def load_row(row):
        dtypes = [*(leaf.dtype for leaf in leaves), tf.int32, tf.bool]
        *inputs, i, keep = tf.numpy_function(load, [row], dtypes, stateful=False)
        shaped = tuple(tf.ensure_shape(array, leaf.shape) for array, leaf in zip(inputs, leaves, strict=True))
        return {"inputs": shaped, "mask": tf.ensure_shape(keep, ()), "index": tf.ensure_shape(i, ())}

    dataset = tf.data.Dataset.range(index.size).map(load_row, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    for batch in dataset.batch(index.shape[1], drop_remainder=True).prefetch(2).as_numpy_iterator():
        if failed:
            raise failed[0]
        corrupt.check()
        inputs = jax.tree.unflatten(tree, batch["inputs"])
        yield batch | {"inputs": inputs, "label": split.labels[batch["index"]]}


def from_arrays(
    take: Callable[[np.ndarray], Any],
    readable: np.ndarray,
    labels: np.ndarray,
    index: np.ndarray,
    mask: np.ndarray,
) -> Iterator[Batch]:
    """Batches of stored activations for the rows `index`, `mask` `[num_batches, B]`; `take(i)` gives rows `i` `[B]`."""
    for i, keep in zip(index, mask, strict=True):
        yield {"inputs": take(i), "label": labels[i], "mask": keep & readable[i], "index": i}


class TokenRows(NamedTuple):
    """Rows of tokens of the examples of a split: `take(i)` gives those of examples `i` `[B]`, unpacked.

    `lengths` int64 `[N]` are their tokens, `readable` bool `[N]` is False where there is no example.
    """

    take: Callable[[np.ndarray], Sequence[packing.Row]]
    readable: np.ndarray
    lengths: np.ndarray

    @property
    def offsets(self) -> np.ndarray:
        """Where the tokens of each begin, and where all end, int64 `[N + 1]`."""
        return np.concatenate([[0], np.cumsum(self.lengths)])


def tokens(split: Split, corrupt: Corrupt) -> TokenRows:
    """Those of the examples of `split`; says once how many were cut, and how many tokens that lost.

    Raises:
        DataError: more of them are unreadable than `corrupt` allows.
    """
    is_new = "tokens" not in vars(split)
    found = split.tokens
    if is_new and (num_cut := int((found.num_lost > 0).sum())):
        lost, kept = int(found.num_lost.sum()), int(found.rows.lengths.sum())
        console.say(
            f"{num_cut} of {len(split.ids)} {split.kind.name} of {split.expression} are longer than data.max_tokens: "
            f"cut, {lost} tokens ({100 * lost / (lost + kept):.1f} %) are lost"
        )
    for i, reason in found.errors.items():
        corrupt.add(i, reason)
    corrupt.check()
    readable = np.ones(len(split.ids), bool)
    readable[list(found.errors)] = False
    return TokenRows(found.rows.take, readable, found.rows.lengths)


def packed_rows(
    lengths: np.ndarray, index: np.ndarray, mask: np.ndarray, num_groups: int
) -> Iterator[tuple[np.ndarray, np.ndarray, packing.Shape]]:
    """Batches of the rows `index`, `mask` `[num_batches, B]` of examples of `lengths` `[N]`, each with its shape."""
    for i, keep in zip(index, mask, strict=True):
        yield i, keep, packing.shape_of(lengths[i].reshape(num_groups, -1))


def from_tokens(
    rows: TokenRows,
    labels: np.ndarray,
    batches: Iterable[tuple[np.ndarray, np.ndarray, packing.Shape]],
    num_groups: int,
) -> Iterator[Batch]:
    """Packed batches in `num_groups` of what `batches` say: `index` and `mask` `[B]` of examples, and a shape.

    An index of -1 is a row without tokens; it stands for the first example.
    """
    for i, keep, shape in batches:
        keep_tokens, i = i >= 0, np.maximum(i, 0)
        inputs = packing.pack(rows.take(i), keep_tokens, shape, num_groups)
        yield {"inputs": inputs, "label": labels[i], "mask": keep & rows.readable[i], "index": i}
