"""The files of the feature cache: one folder a store, its rows written in any order and checked when they are read.

NAME.part/    being computed: what a killed process leaves, and the next goes on with
NAME/         whole: inputs.npy [N, ...], rows.npy [N] (state and CRC-32 of each row), store.json (what it holds)

Activations that are a dict of arrays have a file `inputs.KEY.npy` each. Those of tokens, of which examples have as many
as they like, lie one after another, `[total, ...]`, and `offsets.npy` `[N + 1]` says where those of each begin.

A CRC is of the name of the store, the place of the row and its state too, so that rows or files of stores that were
exchanged do not pass for each other.
"""

import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tltrain.data.pipeline import TokenRows
from tltrain.errors import WorkdirError

_MISSING, _READABLE, _UNREADABLE = range(3)
_ROW = np.dtype([("state", np.uint8), ("crc", np.uint32)])


class DamagedError(Exception):
    """The files of a store are not what was written."""


class Store:
    """Activations `inputs` `[N, ...]`, memory-mapped: an array or a dict of arrays.

    `readable` bool `[N]` is False where there was no example; `offsets` int64 `[N + 1]` is None where an example is a
    row, and not many tokens.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a whole store.

        Raises:
            DamagedError: its files are not there, or do not fit each other.
        """
        self.folder, self.facts = folder, facts(folder) or {}
        try:
            self._rows = np.load(folder / "rows.npy")
            offsets = folder / "offsets.npy"
            self.offsets = np.load(offsets) if offsets.exists() else None
            wanted = jax.tree.map(_shape_of, self.facts["array"], is_leaf=_is_description)
            stored = jax.tree_util.tree_map_with_path(
                lambda path, _: np.load(folder / _file_of(path), mmap_mode="r"), wanted
            )
        except Exception as error:  # whatever NumPy makes of damaged bytes
            raise DamagedError(f"{folder}: {error}") from error
        for array, shape in zip(jax.tree.leaves(stored), jax.tree.leaves(wanted), strict=True):
            found = (array.shape, array.dtype, self._rows.shape, self._rows.dtype)
            if found != (shape.shape, _on_disk(shape.dtype), _num_rows(shape, self.offsets), _ROW):
                raise DamagedError(f"{folder}: {found}")
        self.inputs: Any = jax.tree.map(lambda array, shape: array.view(shape.dtype), stored, wanted)
        self.readable: np.ndarray = self._rows["state"] == _READABLE
        self._checked = np.zeros(len(self._rows), bool)
        os.utime(folder / "store.json")  # the time of the last use

    @property
    def tokens(self) -> TokenRows | None:
        """Its rows of tokens; None where an example is one row."""
        return None if self.offsets is None else TokenRows(self.take, self.readable, np.diff(self.offsets))

    @property
    def row(self) -> Any:
        """The shape of a row, or of the tokens of one, `[n, ...]`."""
        begin = 0 if self.offsets is not None else 1
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[begin:], a.dtype), self.inputs)

    def take(self, index: np.ndarray) -> Any:
        """Rows `index` as arrays `[len(index), ...]`, or a list of the tokens of each; checked when first read.

        Raises:
            WorkdirError: a row is not what was written; the store is removed.
        """
        if self.offsets is None:
            rows = jax.tree.map(lambda array: array[index], self.inputs)
            parts: Any = zip(*jax.tree.leaves(rows), strict=True)
        else:
            spans = [slice(self.offsets[i], self.offsets[i + 1]) for i in index]
            rows = [jax.tree.map(lambda array, span=span: np.array(array[span]), self.inputs) for span in spans]
            parts = map(jax.tree.leaves, rows)
        for i, row in zip(index, parts, strict=True):
            if not self._checked[i] and _crc(self.folder, i, self._rows["state"][i], row) != self._rows["crc"][i]:
                shutil.rmtree(self.folder, ignore_errors=True)
                raise WorkdirError(
                    f"stored features were damaged; row {i} of {self.folder}; they are removed now, and the same "
                    "command computes them again and goes on"
                )
            self._checked[i] = True
        return rows


class Writer:
    """A store that is being computed, or that a killed process left: `missing` bool `[N]` tells what is to be done."""

    def __init__(self, folder: Path, shapes: Any, offsets: np.ndarray | None = None) -> None:
        """Opens `NAME.part` for the store `folder` of arrays of `shapes`; raises OSError where the disk is too full.

        With `offsets` an example is many of their rows, see `Store`.
        """
        self._folder, self._part, self._offsets = folder, folder.with_suffix(".part"), offsets
        self._array = jax.tree.map(lambda one: {"shape": list(one.shape), "dtype": one.dtype.name}, shapes)
        self._part.mkdir(exist_ok=True)
        self._inputs = [
            self._open(_file_of(path), _on_disk(one.dtype), one.shape)
            for path, one in jax.tree_util.tree_leaves_with_path(shapes)
        ]
        self._rows = self._open("rows.npy", _ROW, _num_rows(self._inputs[0], offsets))
        for i in np.flatnonzero(self._rows["state"] != _MISSING):  # what did not reach the disk is done again
            row = [array[self._place(i)] for array in self._inputs]
            if _crc(folder, int(i), self._rows["state"][i], row) != self._rows["crc"][i]:
                self._rows["state"][i] = _MISSING
        self.missing: np.ndarray = self._rows["state"] == _MISSING

    def _open(self, name, dtype, shape):
        path = self._part / name
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

    def _place(self, i):
        return i if self._offsets is None else slice(self._offsets[i], self._offsets[i + 1])

    def write(self, index: np.ndarray, rows: Sequence[Any], readable: np.ndarray) -> None:
        """The `rows` of `index` and whether there were examples; safe to call from many threads for different rows."""
        for i, good, tree in zip(index, readable, rows, strict=True):
            row = [np.asarray(leaf).view(_on_disk(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
            for array, part in zip(self._inputs, row, strict=True):
                array[self._place(i)] = part
            state = _READABLE if good else _UNREADABLE
            self._rows[i] = (state, _crc(self._folder, i, state, row))

    def flush(self) -> None:
        """Gives what was written to the disk."""
        for array in (*self._inputs, self._rows):
            array.flush()

    def finish(self, facts: dict[str, Any]) -> None:
        """Gives the store, which is flushed, its final name; `facts` (JSON) say what it holds."""
        if self._offsets is not None:
            np.save(self._part / "offsets.npy", self._offsets)
        (self._part / "store.json").write_text(json.dumps(facts | {"array": self._array}, indent=2) + "\n")
        for path in self._part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self._part.rename(self._folder)


def folders(directory: Path) -> Iterator[Path]:
    """The stores below `directory`, whole and unfinished."""
    if directory.is_dir():
        yield from sorted(path for path in directory.iterdir() if path.is_dir() and (path / "rows.npy").is_file())


def facts(folder: Path) -> dict[str, Any] | None:
    """What a whole store holds; None for an unfinished one, or where that cannot be read."""
    try:
        return json.loads((folder / "store.json").read_text()) if folder.suffix != ".part" else None
    except (OSError, ValueError):
        return None


def unused_days(folder: Path) -> float:
    """Days since it was last opened."""
    return (time.time() - max(path.stat().st_mtime for path in folder.iterdir())) / 86400


def num_bytes(folder: Path) -> int:
    """Space on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def _num_rows(array: Any, offsets: np.ndarray | None) -> tuple[int]:
    """The shape `(N,)` of what there is once an example."""
    return array.shape[:1] if offsets is None else (len(offsets) - 1,)


def _on_disk(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint16) if dtype == jnp.bfloat16 else dtype  # NumPy's files do not know bfloat16


def _is_description(tree):
    return "shape" in tree


def _shape_of(description):
    return jax.ShapeDtypeStruct(tuple(description["shape"]), jnp.dtype(description["dtype"]))


def _file_of(path) -> str:
    return ".".join(["inputs", *(str(key.key) for key in path), "npy"])


def _crc(folder: Path, index: int, state: int, row: Sequence[np.ndarray]) -> int:
    found = zlib.crc32(f"{folder.name} {index} {state}".encode())
    for part in row:
        found = zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, found)
    return found
