"""MobileNetV3 (Howard et al. 2019, arXiv 1905.02244) as in `keras/src/applications/mobilenet_v3.py`.

Scaling of pixels, a layer of the network in Keras, is `pixels` here. The 1x1 convolution after the mean over the map,
which the paper calls part of the network, is part of the top in Keras, and not here.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from tltrain.models.backbone import KERAS_FILES, WeightFile
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import BatchNorm, Conv, conv_bn
from tltrain.models.mobilenet_v2 import EPSILON, MOMENTUM, ConvStage, round_channels

Activation = Callable[[jax.Array], jax.Array]
# (kernel size, expanded channels, channels, whether they are weighed, activation, stride) of each block
SMALL = (
    (3, 16, 16, True, nn.relu, 2),
    (3, 72, 24, False, nn.relu, 2),
    (3, 88, 24, False, nn.relu, 1),
    (5, 96, 40, True, nn.hard_swish, 2),
    (5, 240, 40, True, nn.hard_swish, 1),
    (5, 240, 40, True, nn.hard_swish, 1),
    (5, 120, 48, True, nn.hard_swish, 1),
    (5, 144, 48, True, nn.hard_swish, 1),
    (5, 288, 96, True, nn.hard_swish, 2),
    (5, 576, 96, True, nn.hard_swish, 1),
    (5, 576, 96, True, nn.hard_swish, 1),
)
LARGE = (
    (3, 16, 16, False, nn.relu, 1),
    (3, 64, 24, False, nn.relu, 2),
    (3, 72, 24, False, nn.relu, 1),
    (5, 72, 40, True, nn.relu, 2),
    (5, 120, 40, True, nn.relu, 1),
    (5, 120, 40, True, nn.relu, 1),
    (3, 240, 80, False, nn.hard_swish, 2),
    (3, 200, 80, False, nn.hard_swish, 1),
    (3, 184, 80, False, nn.hard_swish, 1),
    (3, 184, 80, False, nn.hard_swish, 1),
    (3, 480, 112, True, nn.hard_swish, 1),
    (3, 672, 112, True, nn.hard_swish, 1),
    (5, 672, 160, True, nn.hard_swish, 2),
    (5, 960, 160, True, nn.hard_swish, 1),
    (5, 960, 160, True, nn.hard_swish, 1),
)
STEM, TOP = "conv", "conv_1"  # stages, each named as its convolution


class Block(nn.Module):
    """Expand by 1x1, filter depthwise, weigh the channels where `weighed`, project by 1x1, add the input.

    Nothing is expanded where the input is as `wide` already: in the first block.
    """

    kernel_size: int
    wide: int
    features: int
    weighed: bool
    activation: Activation
    stride: int
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        norm, wide, y = self.norm, self.wide, x
        if wide != x.shape[-1]:
            y = self.activation(conv_bn(y, Conv(wide, name="expand"), norm(wide, name="expand_bn"), train))
        depthwise = Conv(wide, (self.kernel_size,) * 2, (self.stride,) * 2, depthwise=True, name="depthwise")
        y = self.activation(conv_bn(y, depthwise, norm(wide, name="depthwise_bn"), train))
        if self.weighed:
            weights = y.astype(jnp.float32).mean((1, 2), keepdims=True).astype(y.dtype)
            squeeze = Conv(round_channels(wide / 4), use_bias=True, name="squeeze_excite_conv")
            excite = Conv(wide, use_bias=True, name="squeeze_excite_conv_1")
            y = y * nn.hard_sigmoid(excite(nn.relu(squeeze(weights))))
        y = conv_bn(y, Conv(self.features, name="project"), norm(self.features, name="project_bn"), train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV3(ImageBackbone):
    """Stages `conv`, `expanded_conv`, `expanded_conv_1` ..., `conv_1`.

    Features are `[B, H / 32, W / 32, C]`, `C` 576 of the small and 960 of the large one: six times the last block's.
    """

    blocks: tuple[tuple[int, int, int, bool, Activation, int], ...] = SMALL

    pixels: str = "tf"

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM)
        ends = functools.partial(ConvStage, norm=norm, activation=nn.hard_swish)
        stages: dict[str, Callable[..., nn.Module]] = {
            STEM: functools.partial(ends, 16, (3, 3), (2, 2), STEM, f"{STEM}_bn")
        }
        for i, block in enumerate(self.blocks):
            stages[f"expanded_conv_{i}" if i else "expanded_conv"] = functools.partial(Block, *block, norm)
        wide = round_channels(6 * self.blocks[-1][2])
        return stages | {TOP: functools.partial(ends, wide, (1, 1), (1, 1), TOP, f"{TOP}_bn")}

    def keras_name(self, stage, layer):
        return layer if stage in (STEM, TOP) else f"{stage}_{layer}"

    def old_keras_name(self, stage, layer):
        name = layer.replace("_bn", "/BatchNorm").replace("excite_", "excite/").replace("conv", "Conv")
        return name if stage in (STEM, TOP) else f"{stage}/{name}"


_MD5 = {"small": "d3e8ec802a04aa4fc771ee12a9a9b836", "large": "07fb09a5933dd0c8eaafa16978110389"}
VARIANTS: dict[str, Callable[..., MobileNetV3]] = {
    f"mobilenet_v3_{size}": functools.partial(
        MobileNetV3,
        blocks=blocks,
        weight_file=WeightFile(
            f"{KERAS_FILES}/mobilenet_v3/weights_mobilenet_v3_{size}_224_1.0_float_no_top_v2.h5", md5=_MD5[size]
        ),
    )
    for size, blocks in (("small", SMALL), ("large", LARGE))
}
