"""MobileNet (Howard et al. 2017, arXiv 1704.04861) as in `keras/src/applications/mobilenet.py`."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import BatchNorm, Conv, conv_bn

# (channels at alpha 1, stride) of each block
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
EPSILON, MOMENTUM = 1e-3, 0.99


class Stem(nn.Module):
    """Convolution, BatchNorm and ReLU6: ends with Keras' `conv1_relu`."""

    features: int
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 2, W / 2, features]`."""
        conv = Conv(self.features, (3, 3), (2, 2), name="conv1")
        return nn.relu6(conv_bn(x, conv, self.norm(self.features, name="conv1_bn"), train))


class Separable(nn.Module):
    """Filter by depthwise 3x3, then mix by 1x1, each with BatchNorm and ReLU6: ends with Keras' `conv_pw_1_relu`.

    At stride 2 Keras pads below and to the right alone, whatever the size.
    """

    features: int
    stride: int
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        width, strides = x.shape[-1], (self.stride, self.stride)
        padding = ((0, 1), (0, 1)) if self.stride == 2 else None
        depthwise = Conv(width, (3, 3), strides, depthwise=True, padding=padding, name="conv_dw")
        x = nn.relu6(conv_bn(x, depthwise, self.norm(width, name="conv_dw_bn"), train))
        pointwise, norm = Conv(self.features, name="conv_pw"), self.norm(self.features, name="conv_pw_bn")
        return nn.relu6(conv_bn(x, pointwise, norm, train))


class MobileNetV1(ImageBackbone):
    """Width `alpha`; stages `conv1`, `conv_pw_1` ... `conv_pw_13`; features are `[B, H / 32, W / 32, 1024 * alpha]`."""

    alpha: float = 1.0
    blocks: tuple[tuple[int, int], ...] = BLOCKS

    pixels: str = "tf"

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM)
        stages: dict[str, Callable[..., nn.Module]] = {"conv1": functools.partial(Stem, int(32 * self.alpha), norm)}
        for i, (channels, stride) in enumerate(self.blocks, 1):
            stages[f"conv_pw_{i}"] = functools.partial(Separable, int(channels * self.alpha), stride, norm)
        return stages

    def keras_name(self, stage, layer):
        if stage == "conv1":
            return layer
        kind, number = layer.removesuffix("_bn"), stage.rpartition("_")[2]
        return f"{kind}_{number}{layer.removeprefix(kind)}"


VARIANTS: dict[str, Callable[..., MobileNetV1]] = {"mobilenet_v1": MobileNetV1}  # Keras publishes no hash of its file
