"""Xception (Chollet 2016, arXiv 1610.02357) as in `keras/src/applications/xception.py`."""

import functools
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tltrain.models.backbone import KERAS_FILES, WeightFile
from tltrain.models.convolution import VALID, conv2d, same_padding
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import KERNEL_INIT, BatchNorm, Conv, constant, conv_bn
from tltrain.models.pooling import max_pool

EPSILON, MOMENTUM = 1e-3, 0.99
WIDTHS = (128, 256, 728)  # of block2, block3, block4; the last one is that of all middle blocks too


class SeparableConv(nn.Module):
    """Depthwise convolution, then one of 1x1, without bias.

    Parameters, float32: `depthwise_kernel` `[kh, kw, 1, C]`, `pointwise_kernel` `[1, 1, C, D]`.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)

    keras_class: ClassVar[str] = "SeparableConv2D"

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', D]`; `scale` `[D]` multiplies the second kernel before it is used."""
        channels = x.shape[-1]
        depthwise = self.param("depthwise_kernel", KERNEL_INIT, (*self.kernel_size, 1, channels), jnp.float32)
        pointwise = self.param("pointwise_kernel", KERNEL_INIT, (1, 1, channels, self.features), jnp.float32)
        x = conv2d(x, depthwise.astype(x.dtype), self.strides, channels)

        def folded():
            return (pointwise if scale is None else pointwise * scale).astype(x.dtype)

        return conv2d(x, constant(self, "pointwise_kernel", folded), (1, 1))


class Stem(nn.Module):
    """Two unpadded convolutions of 3x3, each with BatchNorm and ReLU: ends with Keras' `block1_conv2_act`."""

    features: tuple[int, int]
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, about H / 2, about W / 2, features[1]]`."""
        for i, (features, stride) in enumerate(zip(self.features, (2, 1), strict=True), 1):
            conv = Conv(features, (3, 3), (stride, stride), padding=VALID, name=f"conv{i}")
            x = nn.relu(conv_bn(x, conv, self.norm(features, name=f"conv{i}_bn"), train))
        return x


class Block(nn.Module):
    """Separable convolutions with BatchNorm and a residual: ends with Keras' `add`.

    ReLU stands before a convolution, but not before the first of `block2`, whose input has it already. Where `thin`,
    the result is pooled to every other place and the input projected by a layer that Keras does not name.
    """

    features: tuple[int, ...]
    norm: Callable[..., BatchNorm]
    thin: bool = False
    relu_first: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 2, W / 2, features[-1]]`, or to the same shape where not `thin`."""
        y = x
        for i, features in enumerate(self.features, 1):
            y = nn.relu(y) if i > 1 or self.relu_first else y
            conv, norm = SeparableConv(features, name=f"sepconv{i}"), self.norm(features, name=f"sepconv{i}_bn")
            y = conv_bn(y, conv, norm, train)
        if not self.thin:
            return x + y
        width = self.features[-1]
        residual = conv_bn(x, Conv(width, strides=(2, 2), name="residual"), self.norm(width, name="residual_bn"), train)
        return max_pool(y, (3, 3), (2, 2), same_padding(y.shape[1:3], (3, 3), (2, 2))) + residual


class Top(nn.Module):
    """Two separable convolutions, each with BatchNorm and ReLU: ends with Keras' `block14_sepconv2_act`."""

    features: tuple[int, int]
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, features[1]]`."""
        for i, features in enumerate(self.features, 1):
            conv, norm = SeparableConv(features, name=f"sepconv{i}"), self.norm(features, name=f"sepconv{i}_bn")
            x = nn.relu(conv_bn(x, conv, norm, train))
        return x


class Xception(ImageBackbone):
    """Stages `block1` ... `block14`; features are `[B, H / 32, W / 32, 2048]`."""

    widths: tuple[int, ...] = WIDTHS
    num_middle: int = 8  # blocks without pooling
    input_size: tuple[int, int] = (299, 299)

    min_size: ClassVar[int] = 71
    pixels: str = "tf"

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM)
        first, middle = self.widths[0], self.widths[-1]
        blocks: list[Callable[..., nn.Module]] = [functools.partial(Stem, (first // 4, first // 2), norm)]
        for i, width in enumerate(self.widths):
            blocks.append(functools.partial(Block, (width, width), norm, thin=True, relu_first=i > 0))
        blocks += [functools.partial(Block, (middle,) * 3, norm)] * self.num_middle
        blocks.append(functools.partial(Block, (middle, 8 * first), norm, thin=True))
        blocks.append(functools.partial(Top, (12 * first, 16 * first), norm))
        return {f"block{i}": block for i, block in enumerate(blocks, 1)}

    def keras_name(self, stage, layer):
        return None if layer.startswith("residual") else f"{stage}_{layer}"


VARIANTS: dict[str, Callable[..., Xception]] = {
    "xception": functools.partial(
        Xception,
        weight_file=WeightFile(
            f"{KERAS_FILES}/xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
            md5="b0042744bf5b25fce3cb969f33bebb97",
        ),
    )
}
