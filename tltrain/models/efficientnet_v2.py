"""EfficientNetV2 B0 to B3, S, M, L (Tan & Le 2021, arXiv 2104.00298) as in `keras/src/applications/efficientnet_v2.py`.

Scaling of pixels, layers of the network in Keras, is `pixels` here: it has no weights. Stochastic depth, which Keras
applies where the whole model trains, is not part of it.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax

from tltrain.models.backbone import KERAS_FILES, WeightFile
from tltrain.models.efficientnet import EPSILON, Block, ConvStage
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import BatchNorm, Conv, conv_bn

# (number of blocks, channels, stride of the first, expansion) of each group; those of the first three are fused
GROUPS = {
    "b": ((1, 16, 1, 1), (2, 32, 2, 4), (2, 48, 2, 4), (3, 96, 2, 4), (5, 112, 1, 6), (8, 192, 2, 6)),
    "s": ((2, 24, 1, 1), (4, 48, 2, 4), (4, 64, 2, 4), (6, 128, 2, 4), (9, 160, 1, 6), (15, 256, 2, 6)),
    "m": (
        *((3, 24, 1, 1), (5, 48, 2, 4), (5, 80, 2, 4)),
        *((7, 160, 2, 4), (14, 176, 1, 6), (18, 304, 2, 6), (5, 512, 1, 6)),
    ),
    "l": (
        *((4, 32, 1, 1), (7, 64, 2, 4), (7, 96, 2, 4)),
        *((10, 192, 2, 4), (19, 224, 1, 6), (25, 384, 2, 6), (7, 640, 1, 6)),
    ),
}
NUM_FUSED = 3
MOMENTUM = 0.9


def nearest_channels(channels: float) -> int:
    """The nearest multiple of 8, at least 8, however much of `channels` is lost: MobileNets lose at most 10 %."""
    return max(8, int(channels + 4) // 8 * 8)


class FusedBlock(nn.Module):
    """Expand by 3x3, project by 1x1, add the input; at expansion 1 one 3x3 convolution with SiLU is both."""

    features: int
    stride: int
    expansion: int
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        filtering = functools.partial(Conv, kernel_size=(3, 3), strides=(self.stride, self.stride))
        project_norm = self.norm(self.features, name="project_bn")
        if self.expansion == 1:
            y = nn.silu(conv_bn(x, filtering(self.features, name="project_conv"), project_norm, train))
        else:
            wide = x.shape[-1] * self.expansion
            expand, norm = filtering(wide, name="expand_conv"), self.norm(wide, name="expand_bn")
            y = nn.silu(conv_bn(x, expand, norm, train))
            y = conv_bn(y, Conv(self.features, name="project_conv"), project_norm, train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class EfficientNetV2(ImageBackbone):
    """Channels times `width`, blocks times `depth`; stages `stem`, `block1a` ... `block6h` (or later), `top`.

    Features are `[B, H / 32, W / 32, C]`, `C` 1280 times `width`.
    """

    width: float = 1.0
    depth: float = 1.0
    stem: int = 32  # channels of the first stage
    groups: tuple[tuple[int, int, int, int], ...] = GROUPS["b"]

    pixels: str = "torch"

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM)
        stem = functools.partial(ConvStage, nearest_channels(self.stem * self.width), 3, 2, norm)
        stages: dict[str, Callable[..., nn.Module]] = {"stem": stem}
        separable = functools.partial(Block, kernel_size=3, depthwise_name="dwconv2")
        for i, (count, channels, stride, expansion) in enumerate(self.groups, 1):
            make, features = FusedBlock if i <= NUM_FUSED else separable, nearest_channels(channels * self.width)
            for j in range(math.ceil(count * self.depth)):
                block_stride = stride if j == 0 else 1
                stages[f"block{i}{chr(ord('a') + j)}"] = functools.partial(
                    make, features=features, stride=block_stride, expansion=expansion, norm=norm
                )
        stages["top"] = functools.partial(ConvStage, nearest_channels(1280 * self.width), 1, 1, norm)
        return stages


def _variant(name, size, md5, **options):
    file = WeightFile(f"{KERAS_FILES}/efficientnet_v2/efficientnetv2-{name}_notop.h5", md5=md5)
    return functools.partial(EfficientNetV2, input_size=(size, size), weight_file=file, **options)


VARIANTS: dict[str, Callable[..., EfficientNetV2]] = {
    f"efficientnet_v2_{name}": _variant(name, size, md5, width=width, depth=depth)
    for name, width, depth, size, md5 in (
        ("b0", 1.0, 1.0, 224, "893217f2bb855e2983157299931e43ff"),
        ("b1", 1.0, 1.1, 240, "0e80663031ca32d657f9caa404b6ec37"),
        ("b2", 1.1, 1.2, 260, "1dfe2e7a5d45b6632553a8961ea609eb"),
        ("b3", 1.2, 1.4, 300, "f6abf7b5849ac99a89b50dd3fd532856"),
    )
} | {
    f"efficientnet_v2_{name}": _variant(name, size, md5, stem=stem, groups=GROUPS[name], pixels="tf_128")
    for name, stem, size, md5 in (
        ("s", 24, 384, "af0682fb74e8c54910f2d4393339c070"),
        ("m", 24, 480, "1b8dc055df72dde80d614482840fe342"),
        ("l", 32, 480, "b0b66b5c863aef5b46e8608fe1711615"),
    )
}
