"""Rows of different lengths as batches of few shapes, in which hardly anything is padding.

The tokens of a batch lie one after another, `[G, T, ...]`: `G` groups, one a device, of up to `T` tokens; where each
belongs is said beside them. So all layers that look at a token alone compute next to nothing for padding; attention, a
small part of the work, is what pads rows, to the next `width`.

A packed batch is a dict: the leaves of tokens, `[G, T, ...]`, and three of `LAYOUT`:

length  int32 `[G, R]`     tokens of each row, 0 where there is no row
token   int32 `[G, R, L]`  which token of the group is the l-th of row r; `T` beyond its end
slot    int32 `[G, T]`     which of the `R * L` places of `token` a token has; `R * L` for those of no row
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

LAYOUT = ("length", "token", "slot")
TOKENS = 1024  # of a group where rows may be in any order: enough to keep a processor busy, and what its cache holds
_LEAST_WIDTH, _LEAST_MIXED = 32, 64
_LEAST_STEP = 128  # tokens from one capacity to the next

Row = dict[str, np.ndarray]


class Shape(NamedTuple):
    """Of a group: its tokens `T`, its rows `R`, and `L`, the tokens of a row in attention."""

    tokens: int
    rows: int
    width: int


class Ragged(NamedTuple):
    """Arrays that have as many rows an example as it has tokens.

    `leaves` are `{name: [offsets[-1], ...]}`, `offsets` int64 `[N + 1]`: where the tokens of each example begin.
    """

    leaves: dict[str, np.ndarray]
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 `[N]`."""
        return np.diff(self.offsets)

    def take(self, index: np.ndarray) -> list[Row]:
        """The tokens of each example of `index`."""
        spans = [slice(self.offsets[i], self.offsets[i + 1]) for i in index]
        return [{name: array[span] for name, array in self.leaves.items()} for span in spans]


def is_packed(inputs: Any) -> bool:
    """Whether arrays or shapes are those of a packed batch."""
    return isinstance(inputs, dict) and inputs.keys() >= set(LAYOUT)


def num_rows(inputs: Any) -> int:
    """Rows of a batch of arrays or shapes, packed or not."""
    return inputs["length"].size if is_packed(inputs) else len(jax.tree.leaves(inputs)[0])


def width(length: int) -> int:
    """The least of 32, 48, 64, 96, 128, 192 ... that `length` tokens fit."""
    found = _LEAST_WIDTH
    while found < length:
        found = found * 3 // 2 if found & (found - 1) == 0 else found * 4 // 3
    return found


def capacity(num_tokens: int) -> int:
    """The least of few numbers, at most a quarter apart, that is not below `num_tokens`."""
    step = max(_LEAST_STEP, (1 << max(num_tokens - 1, 1).bit_length()) // 8)
    return max(1, -(-num_tokens // step)) * step


def shape_of(lengths: np.ndarray) -> Shape:
    """That of a batch in groups of rows of `lengths` `[G, R]`, in this order: of fewer widths, for all lengths meet."""
    wide = max(_LEAST_MIXED, 1 << max(int(lengths.max()) - 1, 0).bit_length())
    return Shape(capacity(int(lengths.sum(1).max())), lengths.shape[1], wide)


def passes(lengths: np.ndarray, num_groups: int) -> Iterator[tuple[np.ndarray, np.ndarray, Shape]]:
    """Batches `(index, mask, shape)` that hold every row of `lengths` `[N]` once, rows of one width together.

    What is computed of a row so depends on no other: its shape follows from its own length. `mask` is False and
    `index` -1 where a batch has no row.
    """
    widths = np.asarray([width(n) for n in lengths.tolist()], np.int64)
    for wide in np.unique(widths):
        tokens = max(TOKENS, capacity(int(wide)))
        shape = Shape(tokens, max(1, 2 * tokens // int(wide)), int(wide))
        groups: list[list[int]] = []
        room = 0
        for i in np.flatnonzero(widths == wide):
            if not groups or room < lengths[i] or len(groups[-1]) == shape.rows:
                groups.append([])
                room = tokens
            groups[-1].append(int(i))
            room -= lengths[i]
        for first in range(0, len(groups), num_groups):
            index, mask = np.full((num_groups, shape.rows), -1, np.int32), np.zeros((num_groups, shape.rows), bool)
            for g, group in enumerate(groups[first : first + num_groups]):
                index[g, : len(group)], mask[g, : len(group)] = group, True
            yield index.reshape(-1), mask.reshape(-1), shape


def pack(rows: Sequence[Row], keep: np.ndarray, shape: Shape, num_groups: int) -> dict[str, np.ndarray]:
    """A packed batch of `rows`, of which those that are not to `keep` bool `[G * R]` have no tokens in it."""
    lengths = np.asarray([len(next(iter(row.values()))) for row in rows], np.int32) * keep
    length = lengths.reshape(num_groups, shape.rows)
    filled = np.arange(shape.width) < length[..., None]
    begin = np.cumsum(length, 1, dtype=np.int32) - length
    token = np.where(filled, begin[..., None] + np.arange(shape.width, dtype=np.int32), np.int32(shape.tokens))
    places = np.arange(shape.rows * shape.width, dtype=np.int32).reshape(shape.rows, shape.width)
    slot = np.full((num_groups, shape.tokens), places.size, np.int32)
    packed = {}
    for g in range(num_groups):
        slot[g, : length[g].sum()] = places[filled[g]]
    for name, like in rows[0].items():
        packed[name] = np.zeros((num_groups, shape.tokens, *like.shape[1:]), like.dtype)
        for g in range(num_groups):
            chosen = range(g * shape.rows, (g + 1) * shape.rows)
            parts = [rows[i][name] for i in chosen if lengths[i]]
            if parts:
                np.concatenate(parts, out=packed[name][g, : length[g].sum()])
    return packed | {"length": length, "token": token, "slot": slot}


def batch_of(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """All `rows` as one packed batch of one group."""
    lengths = np.asarray([[len(next(iter(row.values()))) for row in rows]])
    return pack(rows, np.ones(len(rows), bool), shape_of(lengths), 1)


def unpack(packed: dict[str, Any]) -> list[Row]:
    """The tokens of each row of a packed batch, those without tokens among them."""
    leaves = {name: np.asarray(leaf) for name, leaf in packed.items() if name not in LAYOUT}
    rows = []
    for g, lengths in enumerate(np.asarray(packed["length"])):
        ends = np.cumsum(lengths)
        spans = [slice(end - n, end) for n, end in zip(lengths, ends, strict=True)]
        rows += [{name: leaf[g, span] for name, leaf in leaves.items()} for span in spans]
    return rows


def shapes_of(row: dict[str, Any], shape: Shape, num_groups: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Those of a packed batch of rows like `row`, arrays or shapes `[n, ...]`."""
    tokens = (num_groups, shape.tokens)
    leaves = {name: jax.ShapeDtypeStruct((*tokens, *leaf.shape[1:]), leaf.dtype) for name, leaf in row.items()}
    layout = {"length": (num_groups, shape.rows), "token": (num_groups, shape.rows, shape.width), "slot": tokens}
    return leaves | {name: jax.ShapeDtypeStruct(wanted, np.int32) for name, wanted in layout.items()}
