"""Layers that the backbones share, and the one place where a formulation is chosen by platform.

XLA's convolution on CPU is an order of magnitude slower than the machine for depthwise kernels (jax-ml/jax#23713) and
slower than a matrix product for 1x1 kernels, so on CPU convolutions become taps and products of equal value; GPU and
TPU get `lax.conv_general_dilated`. Shapes: `B` batch, `H W` image, `C` input and `D` output channels.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Padding = Sequence[tuple[int, int]]
VALID = ((0, 0), (0, 0))


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
    if jax.default_backend() != "cpu":
        return _xla_conv(x, kernel, strides, padding, groups)
    if kernel.shape[:2] == (1, 1) and groups == 1:
        return jnp.einsum("bhwc,cd->bhwd", _pad(x, padding)[:, :: strides[0], :: strides[1]], kernel[0, 0])
    if groups == x.shape[-1] == kernel.shape[-1]:
        return _depthwise(_pad(x, padding), kernel, strides)
    if x.shape[-1] <= 4 and groups == 1:
        return _columns_conv(_pad(x, padding), kernel, strides)
    return _xla_conv(x, kernel, strides, padding, groups)


def _xla_conv(x, kernel, strides, padding, groups):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def _pad(x, padding):
    return jnp.pad(x, ((0, 0), *padding, (0, 0))) if any(map(any, padding)) else x


def _taps(x, kernel_size, strides):
    """The shifted, strided views of padded `x` that each position of the kernel meets, with that position."""
    batch, height, width, channels = x.shape
    out = [(n - k) // s for n, k, s in zip((height, width), kernel_size, strides, strict=True)]
    for i, j in itertools.product(range(kernel_size[0]), range(kernel_size[1])):
        stop = (batch, i + out[0] * strides[0] + 1, j + out[1] * strides[1] + 1, channels)
        yield (i, j), lax.slice(x, (0, i, j, 0), stop, (1, *strides, 1))


def _columns_conv(x, kernel, strides):
    """Convolution of padded `x` with few channels: its taps side by side, then one matrix product."""
    columns = jnp.concatenate([tap for _, tap in _taps(x, kernel.shape[:2], strides)], axis=-1)
    return jnp.einsum("bhwc,cd->bhwd", columns, kernel.reshape(-1, kernel.shape[-1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x, kernel, strides):
    """Depthwise convolution of padded `x` `[B, H, W, C]` with `kernel` `[kh, kw, 1, C]`: a sum of shifted products.

    The barrier keeps XLA from computing the producer of `x` again inside every tap.
    """
    x = lax.optimization_barrier(x)
    return functools.reduce(jnp.add, (tap * kernel[i, j, 0] for (i, j), tap in _taps(x, kernel.shape[:2], strides)))


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

    def add_image(sums, image_and_grad):
        image, g = image_and_grad
        taps = _taps(image[None], kernel.shape[:2], strides)
        return [total + tap[0] * g for total, (_, tap) in zip(sums, taps, strict=True)], None

    # one image at a time: the sums over the map stay in the cache, and each product is one fused loop
    zeros = [jnp.zeros(grad.shape[1:], jnp.float32)] * math.prod(kernel.shape[:2])
    sums, _ = lax.scan(add_image, zeros, (x, grad))
    grad_kernel = jnp.stack([total.sum((0, 1)) for total in sums]).reshape(kernel.shape)
    return grad_x, grad_kernel.astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class Conv(nn.Module):
    """Convolution; `padding` None is `"same"`, `depthwise` has one filter a channel.

    Parameters, float32: `kernel` `[kh, kw, C, D]`, or `[kh, kw, 1, C]` where depthwise, and `bias` `[D]` where used.
    """

    features: int
    kernel_size: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    depthwise: bool = False
    padding: Padding | None = None
    use_bias: bool = False

    @property
    def keras_class(self) -> str:
        """The class of this layer in Keras."""
        return "DepthwiseConv2D" if self.depthwise else "Conv2D"

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', D]`; `scale` `[D]` multiplies kernel and bias in float32 before use."""
        groups = x.shape[-1] if self.depthwise else 1
        shape = (*self.kernel_size, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        kernel = kernel if scale is None else kernel * scale
        y = conv2d(x, kernel.astype(x.dtype), self.strides, groups, self.padding)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y + (bias if scale is None else bias * scale).astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation with Keras' conventions (`momentum` is the share of the old running value).

    Parameters `scale` (where `use_scale`) and `bias`, statistics `mean` and `var` (biased), all float32 `[D]`.
    """

    features: int
    epsilon: float
    momentum: float
    axis_name: str | None = None
    use_scale: bool = True

    keras_class: ClassVar[str] = "BatchNormalization"

    def setup(self) -> None:
        shape = (self.features,)
        self.scale = self.param("scale", nn.initializers.ones, shape, jnp.float32) if self.use_scale else 1.0
        self.bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)

    def affine(self) -> tuple[jax.Array, jax.Array]:
        """The layer in inference mode, as `(scale, shift)`, each `[D]`: `scale * x + shift`."""
        return self._affine(self.mean.value, self.var.value)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[B, H, W, D]` by the statistics of the batch, and moves the running ones towards them."""
        wide = x.astype(jnp.float32)
        mean, square = wide.mean((0, 1, 2)), (wide * wide).mean((0, 1, 2))
        if self.axis_name is not None:
            mean, square = lax.pmean((mean, square), self.axis_name)
        var = jnp.maximum(square - mean * mean, 0.0)
        if not self.is_initializing():
            self.mean.value += (1 - self.momentum) * (mean - self.mean.value)
            self.var.value += (1 - self.momentum) * (var - self.var.value)
        scale, shift = self._affine(mean, var)
        return x * scale.astype(x.dtype) + shift.astype(x.dtype)

    def _affine(self, mean, var):
        scale = self.scale * lax.rsqrt(var + self.epsilon)
        return scale, self.bias - mean * scale


def normalize(x: jax.Array, norm: BatchNorm, train: bool) -> jax.Array:
    """`norm(x)`, which in inference mode is one product and one sum."""
    if train:
        return norm(x)
    scale, shift = norm.affine()
    return x * scale.astype(x.dtype) + shift.astype(x.dtype)


def conv_bn(x: jax.Array, conv: nn.Module, norm: BatchNorm, train: bool) -> jax.Array:
    """`norm(conv(x))`; in inference mode the normalisation is folded into the kernel and costs nothing."""
    if train:
        return norm(conv(x))
    scale, shift = norm.affine()
    return conv(x, scale) + shift.astype(x.dtype)


def dropout(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Zeroes entries of `x` `[B, C]` with probability `rate` and scales the rest; row `i` draws from `keys[i]` alone.

    One key a row makes the result independent of how a batch is spread over devices.
    """
    if rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def map_chunks(function: Callable[[jax.Array], jax.Array], x: jax.Array, size: int) -> jax.Array:
    """`function(x)`, on CPU over chunks of up to `size` rows of `x` one after the other.

    Equal to one call for a function of the rows alone; faster where the intermediate values of a whole batch would
    not fit the processor's cache.
    """
    size = math.gcd(len(x), size)
    if jax.default_backend() != "cpu" or size == len(x):
        return function(x)
    chunks = lax.map(function, x.reshape(-1, size, *x.shape[1:]))
    return chunks.reshape(len(x), *chunks.shape[2:])


@functools.cache
def forward_options() -> dict[str, str] | None:
    """Compiler options for a forward pass alone, or None where this XLA does not know them.

    On CPU the products are kept from a library path that is slower for these shapes; a backward pass is better off
    with the defaults.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(jnp.negative, compiler_options=options).lower(1.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options
