"""What files are by content: their sha256 and their kind, read once.

What was read is kept under device, inode, size and the times of change of a file, as git's index does it: all of these
follow a file that is moved within its disk, and none can be set back by whoever writes into it (ctime is the system's).
"""

import hashlib
import os
import stat
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tltrain.data.files import MAX_BYTES, kind_of
from tltrain.places import cache_dir
from tltrain.runtime import console, pace, sealed

_ENTRY = np.dtype([("state", "V40"), ("sha256", "V32"), ("kind", "S16")])
_SETTLED = 2 * 10**9  # ns after a change, from which on another change would show in the times of the file


class Content(NamedTuple):
    """`sha256` of the bytes and the kind of a file as `kind_of` tells it.

    Of a file that cannot be read or is larger than it may be, the sha256 is of the reason.
    """

    sha256: bytes
    kind: str


def of_files(paths: Sequence[Path], place: str, most: int = MAX_BYTES) -> list[Content]:
    """That of every file of `paths` of at most `most` bytes; `place` names the data set, whose files are kept together.

    Of one `place` the `most` is always the same.
    """
    kept = cache_dir() / "contents" / hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    known = _read(kept)
    states = [_state(path) for path in paths]
    new = [i for i, state in enumerate(states) if state not in known]
    found = dict(zip(new, _look(paths, new, most), strict=True))
    contents = [found[i] if i in found else known[state] for i, state in enumerate(states)]
    now = time.time_ns()
    settled = [i for i in new if states[i] and now - max(struct.unpack("<QQQqq", states[i])[3:]) > _SETTLED]
    if settled:
        _write(kept, known | {states[i]: contents[i] for i in settled})
    return contents


def _state(path):
    try:
        s = path.stat()
    except OSError:
        return b""
    return struct.pack("<QQQqq", s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


def _look(paths, new, most):
    """Of the files `new` of `paths`, on all cores."""
    found: list[Content] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        console.progress("Reading new files to know them by content", len(new)) as update,
    ):
        for content in pool.map(lambda i: _read_file(paths[i], most), new):
            found.append(content)
            pace.get_on()
            update(len(found))
    return found


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
    content = sealed.read(kept) or b""
    if len(content) % _ENTRY.itemsize:
        return {}
    entries = np.frombuffer(content, _ENTRY)
    columns = (entries[name].tolist() for name in ("state", "sha256", "kind"))
    return {state: Content(sha256, kind.decode()) for state, sha256, kind in zip(*columns, strict=True)}


def _write(kept, known):
    entries = np.zeros(len(known), _ENTRY)
    for i, (state, content) in enumerate(known.items()):
        entries[i] = (state, content.sha256, content.kind.encode()[:16])
    sealed.write(kept, entries.tobytes())
