"""Pooling over windows of the image. XLA's `reduce_window` on CPU takes up to ten times as long as it has to.

On CPU a window is reduced along its height, then along its width, by shifted views. Shapes: `B` batch, `H W` image,
`C` channels.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tltrain.models.convolution import VALID, Padding, on_cpu, views


def max_pool(x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Padding = VALID) -> jax.Array:
    """The largest of each window of `x` `[B, H, W, C]`: `[B, H', W', C]`; what is padded is never the largest."""
    if not on_cpu():
        return nn.max_pool(x, window, strides, padding)
    return _max_pool(x, window, strides, tuple(padding))


def avg_pool(x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Padding = VALID) -> jax.Array:
    """The mean of each window of `x` `[B, H, W, C]`: `[B, H', W', C]`; what is padded does not count."""
    if not on_cpu():
        return nn.avg_pool(x, window, strides, padding, count_include_pad=False).astype(x.dtype)
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    total, count = (_reduce(jnp.add, jnp.pad(part, ((0, 0), *padding, (0, 0))), window, strides) for part in (x, ones))
    return total / count


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, strides, padding):
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *((*around, 0) for around in padding), (0, 0, 0)))
    return _reduce(jnp.maximum, x, window, strides)


def _max_pool_forward(x, window, strides, padding):
    return _max_pool(x, window, strides, padding), x


def _max_pool_backward(window, strides, padding, x, grad):
    """To the first of the largest values of a window, as on the other platforms."""
    _, transpose = jax.vjp(lambda x: nn.max_pool(x, window, strides, padding), x)
    return transpose(grad)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _reduce(combine: Callable[[jax.Array, jax.Array], jax.Array], x, window, strides):
    for size, stride in (((window[0], 1), (strides[0], 1)), ((1, window[1]), (1, strides[1]))):
        # the barrier keeps XLA from computing the producer of `x` again for every view
        x = functools.reduce(combine, (view for _, view in views(lax.optimization_barrier(x), size, stride)))
    return x
