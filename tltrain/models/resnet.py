"""ResNet (He et al. 2015, arXiv 1512.03385) as in `keras/src/applications/resnet.py`.

Keras pads the first convolution and the first pooling by hand, and puts the stride of a block on its first 1x1.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from tltrain.models.backbone import KERAS_FILES, WeightFile
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import BatchNorm, Conv, conv_bn
from tltrain.models.pooling import max_pool

DEPTHS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
WIDTHS = (64, 128, 256, 512)
EPSILON, MOMENTUM = 1.001e-5, 0.99


def pool(x: jax.Array) -> jax.Array:
    """The largest of 3x3, every other place; zeros stand around `x` `[B, H, W, C]`."""
    return max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))


class Stem(nn.Module):
    """Convolution of 7x7, BatchNorm, ReLU and pooling: ends with Keras' `pool1_pool`."""

    features: int
    norm: Callable[..., BatchNorm]
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 4, W / 4, features]`."""
        padding = ((3, 3), (3, 3))
        conv = Conv(self.features, (7, 7), (2, 2), padding=padding, use_bias=self.use_bias, name="conv")
        return pool(nn.relu(conv_bn(x, conv, self.norm(self.features, name="bn"), train)))


class Bottleneck(nn.Module):
    """Squeeze by 1x1, filter by 3x3, widen by 1x1, add the input or, where `project`, its projection, and ReLU."""

    features: int
    stride: int
    project: bool
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, 4 * features]`."""
        strides = (self.stride, self.stride)

        def layer(i, x, width, size=1, strides=(1, 1)):
            conv = Conv(width, (size, size), strides, use_bias=True, name=f"{i}_conv")
            return conv_bn(x, conv, self.norm(width, name=f"{i}_bn"), train)

        y = nn.relu(layer(1, x, self.features, strides=strides))
        y = nn.relu(layer(2, y, self.features, size=3))
        shortcut = layer(0, x, 4 * self.features, strides=strides) if self.project else x
        return nn.relu(shortcut + layer(3, y, 4 * self.features))


class ResNet(ImageBackbone):
    """Stages `conv1`, `conv2_block1` ... `conv5_block3`; features are `[B, H / 32, W / 32, 4 * widths[-1]]`."""

    depths: tuple[int, ...] = DEPTHS["50"]
    widths: tuple[int, ...] = WIDTHS

    pixels: str = "caffe"

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM)
        stages = {"conv1": functools.partial(Stem, self.widths[0], norm)}
        for group, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 2):
            for i in range(1, depth + 1):
                stride = 2 if i == 1 and group > 2 else 1
                stages[f"conv{group}_block{i}"] = functools.partial(Bottleneck, width, stride, i == 1, norm)
        return stages


def published(name: str, md5: str) -> WeightFile:
    """The file of the variant that Keras calls `name`."""
    return WeightFile(f"{KERAS_FILES}/resnet/{name}_weights_tf_dim_ordering_tf_kernels_notop.h5", md5=md5)


_FILES = {
    "50": WeightFile(
        f"{KERAS_FILES}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        sha256="66c8b43daff3fcc15bc4f30e3d2a167e21a14d9c9598a5394e5516471f4af504",
        num_bytes=94765736,
    ),
    "101": published("resnet101", "88cf7a10940856eca736dc7b7e228a21"),
    "152": published("resnet152", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
}
VARIANTS: dict[str, Callable[..., ResNet]] = {
    f"resnet{depth}": functools.partial(ResNet, depths=DEPTHS[depth], weight_file=file)
    for depth, file in _FILES.items()
}
