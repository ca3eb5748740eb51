"""Positions that were learned for one grid of patches, resized to another by bicubic interpolation.

A resize is linear, so along each axis it is a product with a matrix that depends on the sizes alone. Matrices equal
those of `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, by which the families resize theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np


def resized(positions: jax.Array, before: tuple[int, int], after: tuple[int, int], antialias: bool) -> jax.Array:
    """Positions `[1, h * w, C]` of a grid `before` `(h, w)` for a grid `after`: `[1, h' * w', C]`, float32.

    With `antialias` a kernel grows with the step where a grid becomes smaller, and is Keys' cubic of -0.5 in place of
    -0.75.
    """
    if before == after:
        return positions
    rows, columns = (cubic(n, m, antialias) for n, m in zip(before, after, strict=True))
    grid = positions.reshape(*before, -1)
    return jnp.einsum("ph,hwc,qw->pqc", rows, grid, columns, precision="highest").reshape(1, -1, grid.shape[-1])


def cubic(before: int, after: int, antialias: bool) -> np.ndarray:
    """The matrix float32 `[after, before]` of a bicubic resize along one axis; each row sums to 1.

    Beyond the borders the outermost value goes on without `antialias`; with it weights there are left out.
    Source: Keys 1981, "Cubic convolution interpolation for digital image processing".
    """
    step = before / after
    stretch = max(step, 1.0) if antialias else 1.0
    centers = (np.arange(after) + 0.5) * step - 0.5
    reach = int(np.ceil(2 * stretch)) + 1
    taps = np.floor(centers)[:, None] + np.arange(-reach, reach + 1)
    weights = _keys((taps - centers[:, None]) / stretch, -0.5 if antialias else -0.75)
    if antialias:
        weights = np.where((taps >= 0) & (taps < before), weights, 0.0)
        weights /= weights.sum(1, keepdims=True)
    matrix = np.zeros((after, before))
    np.add.at(matrix, (np.arange(after)[:, None], np.clip(taps, 0, before - 1).astype(int)), weights)
    return matrix.astype(np.float32)


def _keys(x, a):
    """Keys' cubic kernel of parameter `a`, at distances `x`."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
