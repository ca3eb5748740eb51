"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) as in `keras/src/applications/mobilenet_v2.py`."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from tltrain.models.backbone import KERAS_FILES, WeightFile
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import BatchNorm, Conv, conv_bn

# (channels at alpha 1, number of blocks, stride of the first, expansion) of each group of inverted residuals
GROUPS = ((16, 1, 1, 1), (24, 2, 2, 6), (32, 3, 2, 6), (64, 4, 2, 6), (96, 3, 1, 6), (160, 3, 2, 6), (320, 1, 1, 6))
EPSILON, MOMENTUM = 1e-3, 0.999


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that loses at most 10 % of `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvStage(nn.Module):
    """Convolution, BatchNorm and an activation: the first and the last stage."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    conv_name: str
    norm_name: str
    norm: Callable[..., BatchNorm]
    activation: Callable[[jax.Array], jax.Array] = nn.relu6

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', features]`."""
        conv = Conv(self.features, self.kernel_size, self.strides, name=self.conv_name)
        return self.activation(conv_bn(x, conv, self.norm(self.features, name=self.norm_name), train))


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter by depthwise 3x3, project by 1x1; the input is added where shapes allow."""

    features: int
    stride: int
    expansion: int
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        norm, wide = self.norm, x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = nn.relu6(conv_bn(y, Conv(wide, name="expand"), norm(wide, name="expand_BN"), train))
        depthwise = Conv(wide, (3, 3), (self.stride, self.stride), depthwise=True, name="depthwise")
        y = nn.relu6(conv_bn(y, depthwise, norm(wide, name="depthwise_BN"), train))
        y = conv_bn(y, Conv(self.features, name="project"), norm(self.features, name="project_BN"), train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV2(ImageBackbone):
    """Width `alpha`; features are `[B, H / 32, W / 32, 1280]` (more channels for alpha > 1)."""

    alpha: float = 1.0
    groups: tuple[tuple[int, int, int, int], ...] = GROUPS

    pixels: str = "tf"

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM)
        stem = functools.partial(ConvStage, round_channels(32 * self.alpha), (3, 3), (2, 2), "Conv1", "bn_Conv1", norm)
        stages = {"Conv1": stem}
        for channels, count, stride, expansion in self.groups:
            features = round_channels(channels * self.alpha)
            for i in range(count):
                name = f"block_{len(stages) - 1}" if len(stages) > 1 else "expanded_conv"
                block_stride = stride if i == 0 else 1
                stages[name] = functools.partial(InvertedResidual, features, block_stride, expansion, norm)
        last = round_channels(1280 * self.alpha) if self.alpha > 1.0 else 1280
        stages["Conv_1"] = functools.partial(ConvStage, last, (1, 1), (1, 1), "Conv_1", "Conv_1_bn", norm)
        return stages

    def keras_name(self, stage, layer):
        return layer if stage in ("Conv1", "Conv_1") else f"{stage}_{layer}"


VARIANTS: dict[str, Callable[..., MobileNetV2]] = {
    "mobilenet_v2": functools.partial(
        MobileNetV2,
        weight_file=WeightFile(
            f"{KERAS_FILES}/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
            sha256="f8aff69536bd77a692c594f559c798c19bf7f3f36668fc9fa00b21c6aab4797c",
            num_bytes=9406464,
        ),
    )
}
for _alpha in (0.35, 0.5, 0.75, 1.3, 1.4):
    VARIANTS[f"mobilenet_v2_{_alpha}"] = functools.partial(MobileNetV2, alpha=_alpha)
