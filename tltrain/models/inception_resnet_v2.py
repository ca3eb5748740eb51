"""Inception-ResNet v2 (Szegedy et al. 2016, arXiv 1602.07261) as in `keras/src/applications/inception_resnet_v2.py`.

Stem and blocks that change the size are built as those of InceptionV3, with whose conventions branches are described;
Keras names the convolutions that end the other blocks, and numbers the rest.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax

from tltrain.models.backbone import KERAS_FILES, WeightFile
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.inception_v3 import EPSILON, MOMENTUM, ConvNorm, Mixed, Stem
from tltrain.models.layers import Conv

_MIXED_5B = (
    ("1x1", ((96, 1, 1),)),
    ("5x5", ((48, 1, 1), (64, 5, 5))),
    ("3x3dbl", ((64, 1, 1), (96, 3, 3), (96, 3, 3))),
    ("pool", ((64, 1, 1),)),
)
_MIXED_6A = ("3x3", ((384, 3, 3, 2),)), ("3x3dbl", ((256, 1, 1), (256, 3, 3), (384, 3, 3, 2))), ("pool", ())
_MIXED_7A = (
    ("3x3_1", ((256, 1, 1), (384, 3, 3, 2))),
    ("3x3_2", ((256, 1, 1), (288, 3, 3, 2))),
    ("3x3dbl", ((256, 1, 1), (288, 3, 3), (320, 3, 3, 2))),
    ("pool", ()),
)
_BLOCK35 = (
    ("1x1", ((32, 1, 1),)),
    ("3x3", ((32, 1, 1), (32, 3, 3))),
    ("3x3dbl", ((32, 1, 1), (48, 3, 3), (64, 3, 3))),
)
_BLOCK17 = ("1x1", ((192, 1, 1),)), ("7x7", ((128, 1, 1), (160, 1, 7), (192, 7, 1)))
_BLOCK8 = ("1x1", ((192, 1, 1),)), ("3x3", ((192, 1, 1), (224, 1, 3), (256, 3, 1)))
# what begins each part, then the residual blocks that follow: their name, branches and scale
PARTS = (
    ("mixed_5b", _MIXED_5B, "block35", _BLOCK35, 0.17),
    ("mixed_6a", _MIXED_6A, "block17", _BLOCK17, 0.1),
    ("mixed_7a", _MIXED_7A, "block8", _BLOCK8, 0.2),
)


class Residual(ConvNorm):
    """Branches beside each other, brought to the width of the input and added to it: ends with `block35_1_ac`.

    They are added `scale` times; the `last` block of all adds them whole and has no ReLU behind.
    """

    branches: tuple[Any, ...] = ()
    scale: float = 1.0
    last: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to the same shape."""
        mixed = self.beside(dict.fromkeys(dict(self.branches), x), self.branches, train)
        y = Conv(x.shape[-1], use_bias=True, name="conv")(mixed)
        return x + y if self.last else nn.relu(x + y * self.scale)


class Top(ConvNorm):
    """A last convolution: ends with Keras' `conv_7b_ac`."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, 1536 * width]`."""
        return self.layer(x, (1536, 1, 1), "conv_7b", train)


class InceptionResNetV2(ImageBackbone):
    """Stages `stem`, `mixed_5b`, `block35_1` ... `mixed_6a`, `block17_1` ... `mixed_7a`, `block8_1` ... `conv_7b`.

    Features are `[B, 8, 8, 1536]` at 299x299; `width` scales the channels, `depths` is the number of blocks of a part.
    """

    width: float = 1.0
    depths: tuple[int, ...] = (10, 20, 10)
    input_size: tuple[int, int] = (299, 299)

    min_size: ClassVar[int] = 75
    pixels: str = "tf"

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM, use_scale=False)
        stages: dict[str, Callable[..., nn.Module]] = {"stem": functools.partial(Stem, self.width, norm)}
        for (mixed, beginning, block, branches, scale), depth in zip(PARTS, self.depths, strict=True):
            stages[mixed] = functools.partial(Mixed, self.width, norm, beginning)
            for i in range(1, depth + 1):
                last = block == "block8" and i == depth
                stages[f"{block}_{i}"] = functools.partial(Residual, self.width, norm, branches, scale, last)
        return stages | {"conv_7b": functools.partial(Top, self.width, norm)}

    def keras_name(self, stage, layer):
        if stage == "conv_7b":
            return layer
        return f"{stage}_{layer}" if layer == "conv" else None


VARIANTS: dict[str, Callable[..., InceptionResNetV2]] = {
    "inception_resnet_v2": functools.partial(
        InceptionResNetV2,
        weight_file=WeightFile(
            f"{KERAS_FILES}/inception_resnet_v2/inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
            md5="d19885ff4a710c122648d3b5c3b684e4",
        ),
    )
}
