"""Layers that the backbones share. Shapes: `B` batch, `H W` image, `C` input and `D` output channels."""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tltrain.models import winograd
from tltrain.models.convolution import Padding, conv2d, on_cpu
from tltrain.runtime import parallel

Value = TypeVar("Value")

LAYER_SCALE = 1e-6  # initial
KERNEL_INIT = jax.jit(nn.initializers.he_normal(), static_argnums=(1, 2))  # equal shapes are traced once


def is_constant(layer: nn.Module, name: str) -> bool:
    """Whether `constant` of this name is in the collection `constants`, or about to be."""
    about_to = layer.is_mutable_collection("constants") and not layer.is_initializing()
    return about_to or layer.has_variable("constants", name)


def constant(layer: nn.Module, name: str, compute: Callable[[], Value]) -> Value:
    """`compute()`, which depends on variables alone; where the collection `constants` has it, that one.

    `classifier.frozen_constants` fills the collection, once for the many batches that frozen stages see.
    """
    if layer.has_variable("constants", name):
        return layer.get_variable("constants", name)
    value = compute()
    if is_constant(layer, name):
        layer.put_variable("constants", name, value)
    return value


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
        """Maps `[B, H, W, C]` to `[B, H', W', D]`; `scale` `[D]` multiplies kernel and bias in float32 before use.

        Where the kernel is a constant it may be one of `winograd`.
        """
        groups = x.shape[-1] if self.depthwise else 1
        shape = (*self.kernel_size, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", KERNEL_INIT, shape, jnp.float32)
        tiles = is_constant(self, "kernel") and winograd.pays(x, shape, self.strides)

        def folded():
            product = kernel if scale is None else kernel * scale
            return winograd.transform_kernel(product) if tiles else product.astype(x.dtype)

        ready = constant(self, "kernel", folded)
        convolve = winograd.convolve if tiles else functools.partial(conv2d, strides=self.strides, groups=groups)
        y = convolve(x, ready, padding=self.padding)
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
        return constant(self, "affine", lambda: self._affine(self.mean.value, self.var.value))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[B, H, W, D]` by the statistics of the batch, and moves the running ones towards them."""
        wide = x.astype(jnp.float32)
        mean, square = wide.mean((0, 1, 2)), (wide * wide).mean((0, 1, 2))
        if not self.is_initializing():
            mean, square = parallel.mean((mean, square), self.axis_name)
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


class LayerScale(nn.Module):
    """The product with `gamma`, float32 `[C]`, small at first (Touvron et al. 2021, arXiv 2103.17239)."""

    keras_class: ClassVar[str] = "LayerScale"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., C]` to the same shape."""
        gamma = self.param("gamma", nn.initializers.constant(LAYER_SCALE), x.shape[-1:], jnp.float32)
        return x * gamma.astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415) by `erf`; `nn.gelu` has `erfc`, which takes CPUs longer.

    In float32, for the sum with `erf` loses what is small of it.
    """
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def dropout(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Zeroes entries of `x` `[B, C]` with probability `rate` and scales the rest; row `i` draws from `keys[i]` alone.

    One key a row makes the result independent of how a batch is spread over devices.
    """
    if rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def map_chunks(function: Callable[[Any], Any], x: Any, size: int) -> Any:
    """`function(x)`, on CPU over chunks of up to `size` rows of `x` one after the other; both may be trees of arrays.

    Equal to one call for a function of the rows alone; faster where the intermediate values of a whole batch would
    not fit the processor's cache.
    """
    count = len(jax.tree.leaves(x)[0])
    size = math.gcd(count, size)
    if not on_cpu() or size == count:
        return function(x)
    chunks = lax.map(function, jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), x))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), chunks)  # packed rows are pooled to several each


@functools.cache
def forward_options() -> dict[str, str | int] | None:
    """Compiler options for a forward pass alone, or None where this XLA does not know them.

    On CPU depthwise layers and activations use vectors as wide as the processor has, where XLA's default is half of
    AVX-512's. There products are kept from YNNPACK, which is slower for these shapes; without AVX-512 it is as fast,
    and without YNNPACK an image's place in the batch would show in its last bits. Halves are rounded wherever a stage
    says so, or their bits would depend on where stages are divided into programs. A backward pass is better off, or no
    worse, with the defaults.
    """
    if not on_cpu():
        return None
    wide: dict[str, str | int] = {"xla_cpu_prefer_vector_width": 512, "xla_allow_excess_precision": False}
    without_ynnpack = wide | {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        return without_ynnpack if _equal_rows_stay_equal(without_ynnpack) else wide
    except jax.errors.JaxRuntimeError:
        return None


def _equal_rows_stay_equal(options):
    rows = np.tile(np.sin(np.arange(512, dtype=np.float32)), (8 * 7 * 7, 1))  # eight of the smallest maps
    kernel = np.cos(np.arange(512 * 64, dtype=np.float32)).reshape(512, 64)
    product = jax.jit(jnp.matmul, compiler_options=options)(rows, kernel)
    return bool((product == product[0]).all())
