"""The files of the feature cache: one folder a store, its rows written in any order and checked when they are read.

NAME.part/    being computed: what a killed process leaves, and the next goes on with
NAME/         whole: inputs-K.npy [n, ...] and rows-K.npy [n] (state and CRC-32 of each row) of the rows of each shard
              K, in order; store.json (what it holds)

A shard is written by one process alone. Activations that are a dict of arrays have a file `inputs.KEY-K.npy` each.
Those of tokens, of which examples have as many as they like, lie one after another, and `offsets.npy` `[N + 1]` says
where those of each begin, counted over all shards.

A CRC is of the name of the store, the place of the row and its state too, so that rows or files of stores that were
exchanged do not pass for each other.
"""

import functools
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tltrain.cache.shards import MISSING, READABLE, UNREADABLE, DamagedError, Layout, crc, loaded, on_disk, opened
from tltrain.data.pipeline import TokenRows
from tltrain.errors import WorkdirError

_OPEN = 128  # shards of a store that are mapped at once to be read: each takes a file handle an array
_WRITTEN = 4  # shards that are mapped at once to be written


class Store:
    """Activations of N examples, memory-mapped: each an array or a dict of arrays.

    `readable` bool `[N]` is False where there was no example; `offsets` int64 `[N + 1]` is None where an example is a
    row, and not many tokens.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a whole store.

        Raises:
            DamagedError: its files are not there, or do not fit each other.
        """
        self.folder, self.facts = folder, facts(folder) or {}
        self._mapped = functools.lru_cache(_OPEN)(self._map)
        try:
            path = folder / "offsets.npy"
            self.offsets = np.load(path) if path.exists() else None
            self._shapes = jax.tree.map(_shape_of, self.facts["array"], is_leaf=lambda tree: "shape" in tree)
            self._layout = Layout(self._shapes, self.offsets, self.facts["rows_of_shard"])
            shards = range(self._layout.num_shards)
            self._rows = np.concatenate([loaded(*self._layout.files(folder, shard)[0]) for shard in shards])
            for shard in shards[:_OPEN]:
                self._mapped(shard)
        except Exception as error:  # whatever NumPy makes of damaged bytes
            raise DamagedError(f"{folder}: {error}") from error
        self.readable: np.ndarray = self._rows["state"] == READABLE
        self._checked = bytearray(len(self._rows))
        os.utime(folder / "store.json")  # the time of the last use

    def _map(self, shard):
        """The arrays of a shard."""
        arrays = [loaded(*file, "r") for file in self._layout.files(self.folder, shard)[1:]]
        kinds = [leaf.dtype for _, leaf in self._layout.arrays]
        return [np.asarray(array).view(kind) for array, kind in zip(arrays, kinds, strict=True)]

    @property
    def tokens(self) -> TokenRows | None:
        """Its rows of tokens; None where an example is one row."""
        return None if self.offsets is None else TokenRows(self.take, self.readable, np.diff(self.offsets))

    @property
    def row(self) -> Any:
        """The shape of a row, or of the tokens of one, `[n, ...]`."""
        begin = 0 if self.offsets is not None else 1
        return jax.tree.map(lambda leaf: leaf.update(shape=leaf.shape[begin:]), self._shapes)

    def take(self, index: np.ndarray) -> Any:
        """Rows `index` as arrays `[len(index), ...]`, or a list of the tokens of each; checked when first read.

        Raises:
            WorkdirError: a row is not what was written; the store is removed.
        """
        leaves, tree = jax.tree.flatten(self._shapes)
        if self.offsets is not None:
            return [jax.tree.unflatten(tree, [np.array(part) for part in self._row(i)]) for i in index.tolist()]
        arrays = [np.empty((len(index), *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
        for j, i in enumerate(index.tolist()):
            for array, part in zip(arrays, self._row(i), strict=True):
                array[j] = part
        return jax.tree.unflatten(tree, arrays)

    def _row(self, i):
        try:
            shard, _, place = self._layout.place(i)
            row = [array[place] for array in self._mapped(shard)]
            if self._checked[i] or crc(self.folder, i, self._rows["state"][i], row) == self._rows["crc"][i]:
                self._checked[i] = True
                return row
        except (DamagedError, OSError, ValueError):  # a shard that was there when the store was opened
            pass
        shutil.rmtree(self.folder, ignore_errors=True)
        raise WorkdirError(
            f"stored features were damaged; row {i} of {self.folder}; they are removed now, and the same "
            "command computes them again and goes on"
        )


class Writer:
    """A store that is being computed, or that a killed process left; several processes write shards of their own."""

    def __init__(self, folder: Path, shapes: Any, offsets: np.ndarray | None = None) -> None:
        """Opens the store `folder` of arrays of `shapes` `[N, ...]`: `NAME.part` where it is not whole.

        With `offsets` an example is many of their rows, see `Store`.
        """
        self._folder, self._part = folder, folder if folder.is_dir() else folder.with_suffix(".part")
        self._part.mkdir(exist_ok=True)
        self._layout = Layout(shapes, offsets)
        self._array = jax.tree.map(lambda one: {"shape": list(one.shape), "dtype": one.dtype.name}, shapes)
        self._mapped: dict[int, list[np.ndarray]] = {}

    @property
    def num_shards(self) -> int:
        """Shards of the whole store."""
        return self._layout.num_shards

    def whole(self) -> list[int]:
        """The shards of which nothing is missing."""
        found = [shard for shard in range(self.num_shards) if not len(self.missing([shard]))]
        self.flush()
        return found

    def missing(self, shards: Iterable[int]) -> np.ndarray:
        """Positions, int64, of the rows of `shards` that are not there, or not as they were written."""
        found = [np.empty(0, np.int64)]
        for shard in shards:
            rows = np.asarray(self._layout.rows(shard))
            if self._files(shard)[0][0].exists():
                written = zip(map(int, rows), self._map(shard)[0], strict=True)
                rows = rows[[not self._is_there(i, one) for i, one in written]]
            found.append(rows)
        return np.concatenate(found)

    def _is_there(self, i, written):
        if written["state"] == MISSING:
            return False
        shard, _, place = self._layout.place(i)
        return crc(self._folder, i, written["state"], [a[place] for a in self._map(shard)[1:]]) == written["crc"]

    def _files(self, shard):
        return self._layout.files(self._part, shard)

    def _map(self, shard):
        """State and CRC of the rows of a shard, and its arrays; one that was open longest is given to the disk."""
        if shard not in self._mapped:
            if len(self._mapped) >= _WRITTEN:
                self._close(next(iter(self._mapped)))
            self._mapped[shard] = [opened(*file) for file in self._files(shard)]
        return self._mapped[shard]

    def _close(self, shard):
        for array in self._mapped.pop(shard):
            array.flush()

    def write(self, index: np.ndarray, rows: Sequence[Any], readable: np.ndarray) -> None:
        """The `rows` of `index` and whether there were examples."""
        for i, good, tree in zip(map(int, index), readable, rows, strict=True):
            row = [np.asarray(leaf).view(on_disk(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
            shard, k, place = self._layout.place(i)
            state = READABLE if good else UNREADABLE
            written, *arrays = self._map(shard)
            for array, part in zip(arrays, row, strict=True):
                array[place] = part
            written[k] = (state, crc(self._folder, i, state, row))

    def flush(self) -> None:
        """Gives what was written to the disk."""
        for shard in list(self._mapped):
            self._close(shard)

    def read(self, shard: int) -> list[np.ndarray]:
        """What is in the files of a shard, for another process that does not see them."""
        return [np.asarray(array).view(np.uint8) for array in self._map(shard)]

    def copy(self, shard: int, content: Sequence[np.ndarray]) -> None:
        """Writes what `read` gave of a shard in another process."""
        for array, part in zip(self._map(shard), content, strict=True):
            array[...] = part.view(array.dtype)

    def finish(self, facts: dict[str, Any]) -> None:
        """Gives the store its final name; `facts` (JSON) say what it holds."""
        self.flush()
        if self._part == self._folder:
            return
        if self._layout.offsets is not None:
            np.save(self._part / "offsets.npy", self._layout.offsets)
        facts = facts | {"array": self._array, "rows_of_shard": self._layout.rows_of_shard}
        (self._part / "store.json").write_text(json.dumps(facts, indent=2) + "\n")
        for path in self._part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            self._part.rename(self._folder)
        except OSError:  # another process that computed the same was quicker
            if not (self._folder / "store.json").exists():
                raise
            shutil.rmtree(self._part)


def folders(directory: Path) -> Iterator[Path]:
    """The stores below `directory`, whole and unfinished."""
    if directory.is_dir():
        yield from sorted(path for path in directory.iterdir() if path.is_dir() and any(path.glob("rows*.npy")))


def facts(folder: Path) -> dict[str, Any] | None:
    """What a whole store holds; None for an unfinished one, or where that cannot be read."""
    try:
        return json.loads((folder / "store.json").read_text()) if folder.suffix != ".part" else None
    except (OSError, ValueError):
        return None


def unused_days(folder: Path) -> float:
    """Days since it was last opened, 0 where the clock went back since."""
    return max(0.0, time.time() - max(path.stat().st_mtime for path in folder.iterdir())) / 86400


def num_bytes(folder: Path) -> int:
    """Space on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def _shape_of(description):
    return jax.ShapeDtypeStruct(tuple(description["shape"]), jnp.dtype(description["dtype"]))
