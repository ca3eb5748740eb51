"""The same picture in other files: hashes that survive another quality, size or border.

Own code rather than imagehash, whose hashes of 64 bits, see `difference_hash`, do not tell pictures apart well enough,
and which brings scipy and PyWavelets.
"""

from collections.abc import Iterator

import numpy as np

GRID = (16, 17)  # rows and columns of the thumbnail: 16 x 16 differences of neighbours, 256 bits
_BLOCK = 256  # rows of a block of pairs, which then fits the processor's cache


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
