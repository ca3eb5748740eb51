"""Convolution, and the one switch by which a formulation is chosen for a platform, `on_cpu`.

XLA's convolution on CPU is an order of magnitude slower than the machine for depthwise kernels (jax-ml/jax#23713) and
slower than a matrix product for 1x1 kernels, so on CPU convolutions become taps and products of equal value; GPU and
TPU get `lax.conv_general_dilated`, and so does a `portable` program. `pooling` and `winograd` are chosen likewise.
Shapes: `B` batch, `H W` image, `C` input and `D` output channels.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = Sequence[tuple[int, int]]
VALID = ((0, 0), (0, 0))
_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Programs traced within the block are the same on every platform."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def on_cpu() -> bool:
    """Whether what is traced now is for the CPU alone."""
    return jax.default_backend() == "cpu" and not _portable.get()


def on_gpu() -> bool:
    """Whether what is traced now is for GPUs alone."""
    return jax.default_backend() == "gpu" and not _portable.get()


def same_padding(size: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> Padding:
    """Padding with which TensorFlow's `"same"` and Keras' `correct_pad` agree, for each spatial axis.

    Even inputs at stride 2 get `(0, 1)`, odd ones `(1, 1)`.
    """
    total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, strides, strict=True)]
    return [(t // 2, t - t // 2) for t in total]


def conv2d(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], groups: int = 1, padding: Padding | None = None
) -> jax.Array:
    """Convolution of `x` `[B, H, W, C]` with `kernel` `[kh, kw, C / groups, D]`; `padding` None is `"same"`."""
    padding = same_padding(x.shape[1:3], kernel.shape[:2], strides) if padding is None else padding
    if not on_cpu():
        return _xla_conv(x, kernel, strides, padding, groups)
    if kernel.shape[:2] == (1, 1) and groups == 1:
        return jnp.einsum("bhwc,cd->bhwd", _pad(x, padding)[:, :: strides[0], :: strides[1]], kernel[0, 0])
    if groups == x.shape[-1] == kernel.shape[-1]:
        return _depthwise(_pad(x, padding), kernel, strides)
    larger_than_map = any(k > n for k, n in zip(kernel.shape[:2], x.shape[1:3], strict=True))
    if groups == 1 and (math.prod(kernel.shape[:3]) <= 36 or larger_than_map):
        return _columns_conv(_pad(x, padding), kernel, strides)
    return _xla_conv(x, kernel, strides, padding, groups)


def _xla_conv(x, kernel, strides, padding, groups):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def _pad(x, padding):
    return jnp.pad(x, ((0, 0), *padding, (0, 0))) if any(map(any, padding)) else x


def views(
    x: jax.Array, kernel_size: Sequence[int], strides: Sequence[int]
) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """The shifted, strided views of padded `x` that each position of the kernel meets, after that position."""
    batch, height, width, channels = x.shape
    out = [(n - k) // s for n, k, s in zip((height, width), kernel_size, strides, strict=True)]
    for i, j in itertools.product(range(kernel_size[0]), range(kernel_size[1])):
        stop = (batch, i + out[0] * strides[0] + 1, j + out[1] * strides[1] + 1, channels)
        yield (i, j), lax.slice(x, (0, i, j, 0), stop, (1, *strides, 1))


def _columns_conv(x, kernel, strides):
    """Convolution of padded `x` with few channels or pixels: its taps side by side, then one matrix product.

    Columns of 7x7x3 cost more to write than they save. XLA's own convolution by a kernel larger than the map gives the
    last images of a batch other last bits.
    """
    columns = jnp.concatenate([tap for _, tap in views(x, kernel.shape[:2], strides)], axis=-1)
    return jnp.einsum("bhwc,cd->bhwd", columns, kernel.reshape(-1, kernel.shape[-1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=2)  # equal layers are traced once
def _depthwise(x, kernel, strides):
    """Depthwise convolution of padded `x` `[B, H, W, C]` with `kernel` `[kh, kw, 1, C]`: a sum of shifted products.

    The barrier keeps XLA from computing the producer of `x` again inside every tap.
    """
    x = lax.optimization_barrier(x)
    return functools.reduce(jnp.add, (tap * kernel[i, j, 0] for (i, j), tap in views(x, kernel.shape[:2], strides)))


def _depthwise_forward(x, kernel, strides):
    return _depthwise(x, kernel, strides), (x, kernel)


def _depthwise_backward(strides, residuals, grad):
    """To `x`: the taps of the dilated output gradient with the flipped kernel; to `kernel`: a sum of products a tap."""
    x, kernel = residuals
    x, grad = lax.optimization_barrier((x, grad))
    spatial = [
        (k - 1, n - (g - 1) * s - 1, s - 1)
        for n, g, k, s in zip(x.shape[1:3], grad.shape[1:3], kernel.shape[:2], strides, strict=True)
    ]
    dilated = lax.pad(grad, jnp.zeros((), grad.dtype), ((0, 0, 0), *spatial, (0, 0, 0)))
    grad_x = _depthwise(dilated, kernel[::-1, ::-1], (1, 1))

    # few rows of the kernel and one image at a time: the sums over the map stay in the cache, each product is one loop
    rows = kernel.shape[0] if kernel.shape[0] <= 3 else 1

    def of_rows(first):
        def add_image(sums, image_and_grad):
            image, g = image_and_grad
            met = lax.dynamic_slice_in_dim(image, first, (len(g) - 1) * strides[0] + rows)
            taps = views(met[None], (rows, kernel.shape[1]), strides)
            return [total + tap[0] * g for total, (_, tap) in zip(sums, taps, strict=True)], None

        zeros = [jnp.zeros(grad.shape[1:], jnp.float32)] * (rows * kernel.shape[1])
        sums, _ = lax.scan(add_image, zeros, (x, grad))
        return jnp.stack([total.sum((0, 1)) for total in sums])

    sums = of_rows(0) if rows == kernel.shape[0] else lax.map(of_rows, jnp.arange(kernel.shape[0]))
    return grad_x, sums.reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
