"""What files are by content: their sha256 and their kind, read once.

What was read is kept under device, inode, size and the times of change of a file, as git's index does it: all of these
follow a file that is moved within its disk, and none can be set back by whoever writes into it (ctime is the system's).
"""

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, SupportsIndex

import numpy as np

from tltrain.data.files import MAX_BYTES, kind_of
from tltrain.places import cache_dir
from tltrain.runtime import console, pace, sealed

_STATE = np.dtype([(name, "<u8") for name in ("device", "inode", "size")] + [(n, "<i8") for n in ("mtime", "ctime")])
_ENTRY = np.dtype([("state", _STATE), ("sha256", "V32"), ("kind", "S16")])
_GONE = np.zeros((), _STATE)
_SETTLED = 2 * 10**9  # ns after a change, from which on another change would show in the times of the file
_CHUNK = 1 << 13  # files that are looked at before any of them is let go


class Content(NamedTuple):
    """`sha256` of the bytes and the kind of a file as `kind_of` tells it.

    Of a file that cannot be read or is larger than it may be, the sha256 is of the reason.
    """

    sha256: bytes
    kind: str


class Contents:
    """The contents of `count` files by position; `sha256` are all of these, `[N]` of 32 bytes."""

    def __init__(self, count: int) -> None:
        self.sha256, self._kinds = np.zeros(count, "V32"), np.zeros(count, "S16")

    def __len__(self) -> int:
        return len(self.sha256)

    def __getitem__(self, i: SupportsIndex, /) -> Content:
        return Content(self.sha256[i].tobytes(), self._kinds[i].decode())

    def __iter__(self) -> Iterator[Content]:
        return map(self.__getitem__, range(len(self)))

    def put(self, i: np.ndarray, sha256: np.ndarray, kinds: np.ndarray) -> None:
        """Sets those at the positions `i`."""
        self.sha256[i], self._kinds[i] = sha256, kinds


class Paths(Protocol):
    """Paths of files by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: SupportsIndex, /) -> Path: ...


def of_files(paths: Paths, place: str, most: int = MAX_BYTES) -> Contents:
    """That of every file of `paths` of at most `most` bytes; `place` names the data set, whose files are kept together.

    Of one `place` the `most` is always the same.
    """
    kept = cache_dir() / "contents" / hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    known, found = _read(kept), Contents(len(paths))
    new, entries = _match(paths, known, found)
    _look(paths, new, most, entries)
    changed = np.maximum(entries["state"]["mtime"], entries["state"]["ctime"])
    settled = np.flatnonzero((entries["state"] != _GONE) & (time.time_ns() - changed > _SETTLED))
    if len(settled):
        once = np.unique(_keys(entries["state"][settled]), return_index=True)[1]  # a file may have several names
        sealed.write(kept, *(some.view(np.uint8).data for some in (known, entries[settled[once]])))
    found.put(new, entries["sha256"], entries["kind"])
    return found


def _match(paths, known, found):
    """Puts the contents of files that are `known` to `found`; returns the positions of others, and entries to fill."""
    keys = _keys(known["state"])
    order = np.argsort(keys)
    keys = keys[order]
    new, states = [np.zeros(0, np.int64)], [np.zeros(0, _STATE)]
    for start in range(0, len(paths), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(paths)))
        now = np.asarray([_state(paths[i]) for i in rows], _STATE)
        same = np.zeros(len(rows), bool)
        if len(known):
            entries = known[order[np.minimum(np.searchsorted(keys, _keys(now)), len(known) - 1)]]
            same = (entries["state"] == now) & (now != _GONE)
            found.put(rows[same], entries["sha256"][same], entries["kind"][same])
        new.append(rows[~same])
        states.append(now[~same])
    entries = np.zeros(sum(map(len, new)), _ENTRY)
    entries["state"] = np.concatenate(states)
    return np.concatenate(new), entries


def _state(path):
    try:
        s = path.stat()
    except OSError:
        return _GONE.item()
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns


def _keys(states):
    """A hash of each, uint64: where two should have the same, one of the files is read once more."""
    keys = np.zeros(len(states), np.uint64)
    for name in _STATE.names:
        keys = (keys ^ states[name].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys


def _look(paths, new, most, entries):
    """Fills `entries` of the files `new` of `paths`, on all cores."""
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        console.progress("Reading new files to know them by content", len(new)) as update,
    ):
        for start in range(0, len(new), _CHUNK):
            read = pool.map(lambda i: _read_file(paths[i], most), new[start : start + _CHUNK])
            for row, content in enumerate(read, start):
                entries["sha256"][row], entries["kind"][row] = content.sha256, content.kind.encode()
                pace.get_on()
                update(row + 1)


def _read_file(path, most):
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe must not be waited for
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > most:
                return Content(hashlib.sha256(f"{status.st_mode} {status.st_size}".encode()).digest(), "too large")
            first = file.read(512)
            digest = hashlib.sha256(first)
            while block := file.read(2**20):
                digest.update(block)
        return Content(digest.digest(), kind_of(first))
    except OSError as error:
        return Content(hashlib.sha256(str(error.errno).encode()).digest(), "unreadable")


def _read(kept):
    content = sealed.read(kept)
    return np.frombuffer(b"" if content is None or len(content) % _ENTRY.itemsize else content, _ENTRY)
