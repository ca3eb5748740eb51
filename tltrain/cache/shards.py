"""The shards of a store: which rows are in which files, and what is in each."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

MISSING, READABLE, UNREADABLE = range(3)
ROW = np.dtype([("state", np.uint8), ("crc", np.uint32)])
_FEWEST, _SHARDS, _LARGEST = 1024, 64, 128 << 20  # rows, shards and bytes that bound the rows of a shard


class DamagedError(Exception):
    """The files of a store are not what was written."""


class Layout:
    """Where the rows of arrays of `shapes` `[N, ...]` lie: so many in each shard, the last has the rest.

    With `offsets` an example is many of their rows, see `Store`.
    """

    def __init__(self, shapes: Any, offsets: np.ndarray | None, rows_of_shard: int | None = None) -> None:
        """Of a new store the rows of a shard follow from how many and how large they are."""
        leaves = jax.tree_util.tree_leaves_with_path(shapes)
        self.offsets = offsets
        self.arrays = [(".".join(["inputs", *(str(key.key) for key in path)]), leaf) for path, leaf in leaves]
        self.num_rows = leaves[0][1].shape[0] if offsets is None else len(offsets) - 1
        num_bytes = sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves)
        fitting = max(1, _LARGEST * self.num_rows // max(1, num_bytes))
        self.rows_of_shard = rows_of_shard or min(fitting, max(_FEWEST, -(-self.num_rows // _SHARDS)))
        self.num_shards = -(-self.num_rows // self.rows_of_shard)

    def rows(self, shard: int) -> range:
        """Those of a shard."""
        first = shard * self.rows_of_shard
        return range(first, min(first + self.rows_of_shard, self.num_rows))

    def place(self, row: int) -> tuple[int, int, Any]:
        """The shard of a row, which one it is there, and where it lies in the arrays of that."""
        shard, k = divmod(row, self.rows_of_shard)
        if self.offsets is None:
            return shard, k, k
        begin = self.offsets[shard * self.rows_of_shard]
        return shard, k, slice(self.offsets[row] - begin, self.offsets[row + 1] - begin)

    def files(self, folder: Path, shard: int) -> list[tuple[Path, np.dtype, tuple[int, ...]]]:
        """The files of a shard with what is in each: `rows` first, then its arrays."""
        rows = self.rows(shard)
        count = len(rows) if self.offsets is None else int(self.offsets[rows.stop] - self.offsets[rows.start])
        arrays = [(name, on_disk(leaf.dtype), (count, *leaf.shape[1:])) for name, leaf in self.arrays]
        wanted = [("rows", ROW, (len(rows),)), *arrays]
        return [(folder / f"{name}-{shard:05d}.npy", dtype, shape) for name, dtype, shape in wanted]


def loaded(path: Path, dtype: np.dtype, shape: tuple[int, ...], mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The array in a file; raises DamagedError where it is another."""
    array = np.load(path, mmap_mode)
    if (array.dtype, array.shape) != (dtype, shape):
        raise DamagedError(f"{path}: {array.dtype} {array.shape}")
    return array


def opened(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The array in a file that may be written, made where it is not there."""
    if path.exists():
        try:
            found = np.lib.format.open_memmap(path, "r+")
            if (found.dtype, found.shape) == (dtype, shape):
                return found
        except Exception:  # killed while it was made; whatever NumPy makes of damaged bytes
            path.unlink()
    made = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash at some later row
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return made


def on_disk(dtype: np.dtype) -> np.dtype:
    """The type of which a file holds a `dtype`."""
    return np.dtype(np.uint16) if dtype == jnp.bfloat16 else dtype  # NumPy's files do not know bfloat16


def crc(folder: Path, index: int, state: int, row: Sequence[np.ndarray]) -> int:
    """That of a row at place `index` of the store `folder`."""
    found = zlib.crc32(f"{folder.name} {index} {state}".encode())
    for part in row:
        found = zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, found)
    return found
