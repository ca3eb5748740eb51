"""Every file of a split looked at once: can it be read, what is it, and which others have the same bytes."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from tltrain.data.split import Split
from tltrain.errors import reason_of


class Looked(NamedTuple):
    """What the files `files` `[N]` of a split are.

    `num_bytes` int64 `[N]`, `sha256` `[N]` of 32 bytes, `seen` what `Kind.look` says of each, None of one that cannot
    be read, and why that is: `errors` by position in `files`.
    """

    files: np.ndarray
    num_bytes: np.ndarray
    sha256: np.ndarray
    seen: list[Any]
    errors: dict[int, str]

    @property
    def readable(self) -> np.ndarray:
        """bool `[N]`."""
        return np.asarray([one is not None for one in self.seen], bool)


def look(split: Split, index: np.ndarray, update: Callable[[int], None]) -> Looked:
    """Reads, hashes and decodes the files `index` of `split` on all cores; `update` is told how many are done."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = []
        for one in pool.map(lambda i: _look_at(split, int(i)), index):
            found.append(one)
            update(len(found))
    num_bytes, sha256, seen, errors = zip(*found, strict=True)
    told = {i: error for i, error in enumerate(errors) if error}
    return Looked(index, np.asarray(num_bytes, np.int64), np.asarray(sha256, "V32"), list(seen), told)


def _look_at(split, i):
    encoded = b""
    try:
        encoded = split.read(i)
        return len(encoded), hashlib.sha256(encoded).digest(), split.kind.look(encoded), ""
    except OSError as error:
        # what cannot be read at all is no copy of another such file: its name stands for its bytes
        sha256 = hashlib.sha256(encoded or split.ids[i].encode("utf-8", "surrogateescape")).digest()
        return len(encoded), sha256, None, reason_of(error)


def same_files(sha256: np.ndarray) -> list[np.ndarray]:
    """Positions in `sha256` `[N]` that hold equal bytes, a group of two or more each."""
    order = np.argsort(sha256, kind="stable")
    starts = np.flatnonzero(np.r_[True, sha256[order][1:] != sha256[order][:-1]])
    return [group for group in np.split(order, starts[1:]) if len(group) > 1]
