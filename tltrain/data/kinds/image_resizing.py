"""Pillow's bilinear resize as matrix products, of operations that Keras, JAX and every exported format have.

Pillow weighs the pixels around a position by a triangle, widened by the factor by which the image shrinks; first along
rows, then along columns. Its weights are rounded to 22 bits, its sums to whole grey levels (`Resample.c` in Pillow's
`src/libImaging`). A sum of 8 bits times 22 has no room in a float32, so a weight is two numbers of 11 bits here, and
the sums are exact: to 224 pixels from up to 960 a side always, from more but for a rare grey level. The edges of a
`"crop"` to what is no square are rounded by Pillow, not here, which moves a few pixels in ten thousand by a level.
"""

from typing import Any

import numpy as np

_HALF = 2.0**11  # of the 2 ** 22 parts that are the unit of a weight


def resize(xp: Any, images: Any, size: tuple[int, int], mode: str) -> Any:
    """What `image_decoding` makes of each image, whatever the height and width of the batch.

    Args:
        xp: `jax.numpy` or `keras.ops`; with the latter `images` may be symbolic.
        images: float32 `[B, H, W, 3]`, whole numbers in 0..255; `H` and `W` need not be known yet.
        size: height and width of the result in pixels.
        mode: `"stretch"` or `"crop"`, as `data.resize`.

    Returns:
        Float32 `[B, *size, 3]`, whole numbers in 0..255.
    """
    planes = xp.transpose(images, (0, 3, 2, 1))  # [B, 3, W, H]
    ones = xp.ones_like(planes[0, 0, 0, :]), xp.ones_like(planes[0, 0, :, 0])
    scales = [(xp.sum(axis), length) for axis, length in zip(ones, size, strict=True)]
    if mode == "crop":
        (rows, height), (columns, width) = scales
        wide = columns * height > rows * width
        scales = [(xp.where(wide, rows, columns), xp.where(wide, float(height), float(width)))] * 2
    vertical, horizontal = (_weights(xp, *axis) for axis in zip(ones, size, scales, strict=True))
    planes = xp.transpose(_weighed(xp, horizontal, planes), (0, 1, 3, 2))
    return xp.transpose(_weighed(xp, vertical, planes), (0, 2, 3, 1))


def _weights(xp, ones, length, scale):
    """The share of each of `N` pixels in each new one, which is `n / d` pixels wide: two times `[length, N]`.

    Distances are counted in units of `1 / 2d` pixel from the centre of the image, so that they are whole numbers.
    """
    n, d = scale
    old = 2 * xp.cumsum(ones) - 1 - xp.sum(ones)
    new = 2 * np.arange(length, dtype=np.float32)[:, None] + 1 - length
    distance = xp.abs(xp.expand_dims(old, 0) * d - n * new)
    triangle = xp.maximum(2 * xp.maximum(n, d) - distance, 0)
    total = xp.sum(triangle, axis=1, keepdims=True)
    high = xp.floor(triangle * _HALF / total)
    low = xp.floor((triangle * _HALF - high * total) * _HALF / total + 0.5)
    return high, low


def _weighed(xp, weights, planes):
    """The rounded sums over axis 2 of `planes` `[B, 3, N, M]` by `weights`: `[B, 3, length, M]`."""
    high, low = (xp.matmul(part, planes) for part in weights)
    return xp.floor((high + xp.floor(low / _HALF)) / _HALF + 0.5)
