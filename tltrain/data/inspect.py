"""Every file of a split looked at once: does it decode, what is it, and which others are the same picture."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from tltrain.data.preprocess import FORMATS, load_image
from tltrain.data.split import Split
from tltrain.errors import reason_of

_GRID = (16, 17)  # rows and columns of the thumbnail: 16 x 16 differences of neighbours, 256 bits
_BLOCK = 256  # rows of a block of pairs, which then fits the processor's cache


class Looked(NamedTuple):
    """What the files `files` `[N]` of a split are; of one that does not decode all but `sha256` and `errors` is empty.

    `num_bytes` int64 `[N]`, `sha256` `[N]` of 32 bytes, `sizes` int32 `[N, 2]` (height, width), `modes` Pillow's
    names, `hashes` uint64 `[N, 4]` as by `difference_hash`, `brightest` uint8 `[N]` (of the thumbnail),
    `errors` by position in `files`.
    """

    files: np.ndarray
    num_bytes: np.ndarray
    sha256: np.ndarray
    sizes: np.ndarray
    modes: np.ndarray
    hashes: np.ndarray
    brightest: np.ndarray
    errors: dict[int, str]

    @property
    def readable(self) -> np.ndarray:
        """bool `[N]`."""
        return self.modes != ""


def look(split: Split, index: np.ndarray, update: Callable[[int], None]) -> Looked:
    """Reads, hashes and decodes the files `index` of `split` on all cores; `update` is told how many are done."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = []
        for one in pool.map(lambda i: _look_at(split, int(i)), index):
            found.append(one)
            update(len(found))
    num_bytes, sha256, sizes, modes, hashes, brightest, errors = zip(*found, strict=True)
    return Looked(
        index,
        np.asarray(num_bytes, np.int64),
        np.asarray(sha256, "V32"),
        np.asarray(sizes, np.int32),
        np.asarray(modes),
        np.stack(hashes),
        np.asarray(brightest, np.uint8),
        {i: error for i, error in enumerate(errors) if error},
    )


def _look_at(split, i):
    encoded = b""
    try:
        encoded = split.read(i)
        pixels = load_image(encoded, _GRID, "stretch")  # as a run does, so what fails here fails there
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as header:
            size, mode = (header.height, header.width), header.mode
    except OSError as error:
        # what cannot be read at all is no copy of another such file: its name stands for its bytes
        sha256 = hashlib.sha256(encoded or split.ids[i].encode("utf-8", "surrogateescape")).digest()
        return len(encoded), sha256, (0, 0), "", np.zeros(4, np.uint64), 0, reason_of(error)
    sha256 = hashlib.sha256(encoded).digest()
    return len(encoded), sha256, size, mode, difference_hash(pixels), pixels.max(), ""


def difference_hash(pixels: np.ndarray) -> np.ndarray:
    """256 bits, uint64 `[4]`, of a thumbnail uint8 `[16, 17, 3]`: is a pixel brighter than its left neighbour?

    The dHash of Krawetz 2013 ("Kind of like that"), on a finer grid than its 8 x 8: over 4 million pairs of different
    photos or fabrics the nearest differ in 57 bits of the 256, on 8 x 8 in 2 of the 64.
    """
    grey = pixels.astype(np.int32).sum(-1)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).view(np.uint64)


def near_pairs(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """`(i, j, differing bits)` where hashes `a[i]` and `b[j]`, uint64 `[., 4]`, are those of one picture.

    That is where they differ in at most an eighth of the bits that are set in the two: 32 for most pictures, fewer for
    flat ones, whose few bits are near each other by chance. A copy at another quality (40) or size (0.5 to 1.5), with a
    border of 1 % cut off or 15 % brighter differs in 27 at most; different pictures in 57 and more.
    """
    set_a, set_b = (np.bitwise_count(bits).sum(-1, dtype=np.int16) for bits in (a, b))
    for first in range(0, len(a), _BLOCK):
        rows = slice(first, first + _BLOCK)
        distance = np.zeros((len(a[rows]), len(b)), np.int16)
        for word in range(a.shape[1]):
            distance += np.bitwise_count(a[rows, None, word] ^ b[None, :, word])
        for i, j in np.argwhere(8 * distance <= set_a[rows, None] + set_b[None]):
            yield first + int(i), int(j), int(distance[i, j])


def same_files(sha256: np.ndarray) -> list[np.ndarray]:
    """Positions in `sha256` `[N]` that hold equal bytes, a group of two or more each."""
    order = np.argsort(sha256, kind="stable")
    starts = np.flatnonzero(np.r_[True, sha256[order][1:] != sha256[order][:-1]])
    return [group for group in np.split(order, starts[1:]) if len(group) > 1]
