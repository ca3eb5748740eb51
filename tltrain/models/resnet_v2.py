"""ResNetV2 (He et al. 2016, arXiv 1603.05027) as in `keras/src/applications/resnet_v2.py`.

Normalisation and ReLU stand before a convolution; a block's stride is in its last block, not its first.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import BatchNorm, Conv, conv_bn, normalize
from tltrain.models.resnet import DEPTHS, EPSILON, MOMENTUM, WIDTHS, pool, published


class Stem(nn.Module):
    """Convolution of 7x7 and pooling, which here sees the zeros around it: ends with Keras' `pool1_pool`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 4, W / 4, features]`."""
        return pool(Conv(self.features, (7, 7), (2, 2), padding=((3, 3), (3, 3)), use_bias=True, name="conv")(x))


class Bottleneck(nn.Module):
    """Normalise, squeeze by 1x1, filter by 3x3, widen by 1x1; add the input, thinned out, or its projection."""

    features: int
    stride: int
    project: bool
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, 4 * features]`."""
        width, stride = self.features, self.stride
        active = nn.relu(normalize(x, self.norm(x.shape[-1], name="preact_bn"), train))
        y = nn.relu(conv_bn(active, Conv(width, name="1_conv"), self.norm(width, name="1_bn"), train))
        middle = Conv(width, (3, 3), (stride, stride), padding=((1, 1), (1, 1)), name="2_conv")
        y = nn.relu(conv_bn(y, middle, self.norm(width, name="2_bn"), train))
        project = Conv(4 * width, strides=(stride, stride), use_bias=True, name="0_conv")
        shortcut = project(active) if self.project else x[:, ::stride, ::stride]
        return shortcut + Conv(4 * width, use_bias=True, name="3_conv")(y)


class Post(nn.Module):
    """The last normalisation and ReLU: ends with Keras' `post_relu`, or `relu` in DenseNet."""

    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to the same shape."""
        return nn.relu(normalize(x, self.norm(x.shape[-1], name="bn"), train))


class ResNetV2(ImageBackbone):
    """Stages `conv1`, `conv2_block1` ... `conv5_block3`, `post`; features are `[B, H / 32, W / 32, 4 * widths[-1]]`."""

    depths: tuple[int, ...] = DEPTHS["50"]
    widths: tuple[int, ...] = WIDTHS

    pixels: str = "tf"

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM)
        stages: dict[str, Callable[..., nn.Module]] = {"conv1": functools.partial(Stem, self.widths[0])}
        last = len(self.depths) + 1
        for group, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 2):
            for i in range(1, depth + 1):
                stride = 2 if i == depth and group < last else 1
                stages[f"conv{group}_block{i}"] = functools.partial(Bottleneck, width, stride, i == 1, norm)
        return stages | {"post": functools.partial(Post, norm)}


_MD5 = {
    "50": "fac2f116257151a9d068a22e544a4917",
    "101": "c0ed64b8031c3730f411d2eb4eea35b5",
    "152": "ed17cf2e0169df9d443503ef94b23b33",
}
VARIANTS: dict[str, Callable[..., ResNetV2]] = {
    f"resnet{depth}_v2": functools.partial(
        ResNetV2, depths=DEPTHS[depth], weight_file=published(f"resnet{depth}v2", md5)
    )
    for depth, md5 in _MD5.items()
}
