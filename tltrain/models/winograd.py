"""Convolution by minimal filtering (Winograd 1980; Lavin & Gray 2015, arXiv 1509.09308), F(2, 3) along each axis.

Two neighbouring outputs of a kernel of three cost four products instead of six, so tiles of 2x2 outputs of a 3x3
kernel take 16 matrix products instead of 36. The transforms are sums of few terms with factors of 1 and 1/2: results
differ from those of the plain sum by about 1e-6 of the largest. Kernels are transformed once, so it is for frozen
stages. Shapes: `B` batch, `H W` image, `C` input and `D` output channels.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tltrain.models.convolution import Padding, on_cpu, same_padding, views

KERNEL_SIZES = ((3, 3), (1, 3), (3, 1))
_MAX_BYTES = 2**26  # of all tiles of an image before and after the products; above, memory takes what arithmetic saves
_MIN_CHANNELS, _MIN_KERNEL = 48, 64 * 64  # below, C or C * D, products are too small to make up for the transforms
_KERNEL_TRANSFORMS = {
    1: np.ones((1, 1), np.float32),
    3: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32),
}
_Grid = Sequence[Sequence[jax.Array]]


def pays(x: jax.Array, kernel: Sequence[int], strides: tuple[int, int]) -> bool:
    """Whether `convolve` is faster than `conv2d` here, for images like those of `x` and a kernel of this shape."""
    height, width, channels, features = kernel
    return (
        on_cpu()
        and x.dtype == jnp.float32
        and strides == (1, 1)
        and (height, width) in KERNEL_SIZES
        and channels == x.shape[-1] >= _MIN_CHANNELS
        and channels * features >= _MIN_KERNEL
        and 16 * x.shape[1] * x.shape[2] * (channels + features) <= _MAX_BYTES
    )


@jax.jit
def transform_kernel(kernel: jax.Array) -> jax.Array:
    """What `convolve` takes for `kernel` `[kh, kw, C, D]`, sizes 3 or 1: `[th, tw, C, D]`, sizes 4 or 1."""
    rows, columns = (_KERNEL_TRANSFORMS[n] for n in kernel.shape[:2])
    taps = jnp.kron(rows, columns) @ kernel.reshape(-1, math.prod(kernel.shape[2:]))
    return taps.reshape(len(rows), len(columns), *kernel.shape[2:])


@functools.partial(jax.jit, static_argnames="padding")
def convolve(x: jax.Array, kernel: jax.Array, padding: Padding | None = None) -> jax.Array:
    """`conv2d` at stride 1 of `x` `[B, H, W, C]` with a kernel of `transform_kernel`, `[th, tw, C, D]`.

    The barriers make XLA write each tile once, instead of computing it again where it is read. One product over all
    tiles reads its parts where they lie; as many products would first copy them, and compile longer.
    """
    tile = kernel.shape[:2]
    steps = [2 if t == 4 else 1 for t in tile]  # outputs of a tile
    if padding is None:
        padding = same_padding(x.shape[1:3], [t + 1 - step for t, step in zip(tile, steps, strict=True)], (1, 1))
    sizes, padded = [], []
    for n, (before, after), t, step in zip(x.shape[1:3], padding, tile, steps, strict=True):
        sizes.append(n + before + after + step - t)
        padded.append((before, after + sizes[-1] % step))
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), *padded, (0, 0))))
    cut = dict(views(x, tile, steps))
    grid = [[cut[i, j] for j in range(tile[1])] for i in range(tile[0])]
    parts = _transformed(lambda a, b, c, d: (a - c, b + c, c - b, b - d), grid)
    tiles = lax.optimization_barrier(jnp.stack([jnp.stack(row) for row in parts]))
    products = lax.optimization_barrier(jnp.einsum("tubhwc,tucd->tubhwd", tiles, kernel))
    outputs = _transformed(lambda a, b, c, d: (a + b + c, b - c - d), [list(row) for row in products])
    y = jnp.stack([jnp.stack(row, axis=3) for row in outputs], axis=2)  # [B, tiles, step, tiles, step, D]
    batch, rows, _, columns, _, features = y.shape
    y = y.reshape(batch, rows * steps[0], columns * steps[1], features)
    return y[:, : sizes[0], : sizes[1]]


def _transformed(transform: Callable[..., Sequence[jax.Array]], grid: _Grid) -> _Grid:
    """`transform` of every column of `grid`, then of every row; of a single one nothing is made."""
    if len(grid) > 1:
        grid = list(zip(*(transform(*column) for column in zip(*grid, strict=True)), strict=True))
    return [transform(*row) for row in grid] if len(grid[0]) > 1 else grid
