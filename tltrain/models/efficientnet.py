"""EfficientNet B0 to B7 (Tan & Le 2019, arXiv 1905.11946) as in `keras/src/applications/efficientnet.py`.

Scaling and normalisation of pixels are layers of the first stage. Stochastic depth, which Keras applies where the
whole model trains, is not part of it. Lite 0 to 4 are
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite with the weights of timm.
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tltrain.models.backbone import WeightFile
from tltrain.models.hub_backbone import HubBackbone
from tltrain.models.image_backbone import IMAGENET_STD, ImageBackbone
from tltrain.models.layers import BatchNorm, Conv, conv_bn
from tltrain.models.mobilenet_v2 import round_channels

# (kernel size, number of blocks, channels, stride of the first, expansion) of each group at B0
GROUPS = (
    (3, 1, 16, 1, 1),
    (3, 2, 24, 2, 6),
    (5, 2, 40, 2, 6),
    (3, 3, 80, 2, 6),
    (5, 3, 112, 1, 6),
    (5, 4, 192, 2, 6),
    (3, 1, 320, 1, 6),
)
EPSILON, MOMENTUM = 1e-3, 0.99
# what timm calls the layers of the ends, of blocks, and of the first block, which does not expand
_TIMM_ENDS = {"stem": {"conv": "conv_stem", "bn": "bn1"}, "top": {"conv": "conv_head", "bn": "bn2"}}
_TIMM = {"expand_conv": "conv_pw", "expand_bn": "bn1", "dwconv": "conv_dw", "bn": "bn2", "project_conv": "conv_pwl"}
_TIMM |= {"project_bn": "bn3"}
_TIMM_FIRST = {"dwconv": "conv_dw", "bn": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}


class Normalization(nn.Module):
    """Pixels less `mean`, divided by the root of `var`, float32 `[3]` each: constants that no training moves.

    In Keras' ImageNet files the place of the variance holds the deviation, which a further layer of `EfficientNet`
    corrects; so a `var` of these three numbers is taken as the deviation here.
    """

    keras_class: ClassVar[str] = "Normalization"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[B, H, W, 3]` in 0..1."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, (3,), jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.ones, (3,), jnp.float32).value
        return ((x.astype(jnp.float32) - mean) * normalization_scale(var)).astype(x.dtype)


def normalization_scale(var: jax.Array) -> jax.Array:
    """What pixels less their mean are multiplied by, float32 `[3]`, for a stored `var` `[3]`; see `Normalization`."""
    published = jnp.abs(var - jnp.asarray(IMAGENET_STD)).max() < 1e-6
    return jnp.where(published, 1 / var, jax.lax.rsqrt(var))


class ConvStage(nn.Module):
    """Convolution, BatchNorm and activation, after the scaling of pixels where `of_pixels`; `stem_activation`."""

    features: int
    kernel_size: int
    stride: int
    norm: Callable[..., BatchNorm]
    of_pixels: bool = False
    activation: Callable[[jax.Array], jax.Array] = nn.silu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        x = Normalization(name="normalization")(x / 255.0) if self.of_pixels else x
        conv = Conv(self.features, (self.kernel_size,) * 2, (self.stride,) * 2, name="conv")
        return self.activation(conv_bn(x, conv, self.norm(self.features, name="bn"), train))


class Block(nn.Module):
    """Expand by 1x1, filter depthwise, weigh the channels where `weighed`, project by 1x1, add the input.

    They are weighed by squeeze and excitation.
    """

    features: int
    kernel_size: int
    stride: int
    expansion: int
    norm: Callable[..., BatchNorm]
    depthwise_name: str = "dwconv"
    activation: Callable[[jax.Array], jax.Array] = nn.silu
    weighed: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        norm, channels = self.norm, x.shape[-1]
        wide, y = channels * self.expansion, x
        if self.expansion > 1:
            y = self.activation(conv_bn(y, Conv(wide, name="expand_conv"), norm(wide, name="expand_bn"), train))
        depthwise = Conv(wide, (self.kernel_size,) * 2, (self.stride,) * 2, depthwise=True, name=self.depthwise_name)
        y = self.activation(conv_bn(y, depthwise, norm(wide, name="bn"), train))
        if self.weighed:
            weights = y.astype(jnp.float32).mean((1, 2), keepdims=True).astype(y.dtype)
            weights = self.activation(Conv(max(1, channels // 4), use_bias=True, name="se_reduce")(weights))
            y = y * nn.sigmoid(Conv(wide, use_bias=True, name="se_expand")(weights))
        y = conv_bn(y, Conv(self.features, name="project_conv"), norm(self.features, name="project_bn"), train)
        return x + y if self.stride == 1 and channels == self.features else y


class EfficientNet(ImageBackbone):
    """Channels times `width`, blocks times `depth`; stages `stem`, `block1a` ... `block7a`, `top`.

    Features are `[B, H / 32, W / 32, C]`, `C` 1280 times `width`.
    """

    width: float = 1.0
    depth: float = 1.0
    groups: tuple[tuple[int, int, int, int, int], ...] = GROUPS

    pixels: str = "raw"

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM)
        stem = functools.partial(ConvStage, round_channels(32 * self.width), 3, 2, norm, of_pixels=True)
        stages: dict[str, Callable[..., nn.Module]] = {"stem": stem}
        for i, (size, count, channels, stride, expansion) in enumerate(self.groups, 1):
            features = round_channels(channels * self.width)
            for j in range(math.ceil(count * self.depth)):
                block = functools.partial(Block, features, size, stride if j == 0 else 1, expansion, norm)
                stages[f"block{i}{chr(ord('a') + j)}"] = block
        stages["top"] = functools.partial(ConvStage, round_channels(1280 * self.width), 1, 1, norm)
        return stages

    def keras_name(self, stage, layer):
        return None if layer == "normalization" else f"{stage}_{layer}"


class EfficientNetLite(HubBackbone, EfficientNet):
    """Without squeeze and excitation, with ReLU6; the ends are not widened, the first and last group not deepened.

    Features are `[B, H / 32, W / 32, 1280]`.
    """

    pixels: str = "tf"

    needs_files = False
    hub_unused = (r"classifier\..*", r".*\.num_batches_tracked")

    def resolve(self, config: ConfigDict) -> None:
        """Its weights and image size where a config names none."""
        HubBackbone.resolve(self, config)
        EfficientNet.resolve(self, config)

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM)
        end = functools.partial(ConvStage, norm=norm, activation=nn.relu6)
        stages: dict[str, Callable[..., nn.Module]] = {"stem": functools.partial(end, 32, 3, 2)}
        for i, (size, count, channels, stride, expansion) in enumerate(self.groups, 1):
            features = round_channels(channels * self.width)
            block = functools.partial(Block, features, size, norm=norm, activation=nn.relu6, weighed=False)
            for j in range(count if i in (1, len(self.groups)) else math.ceil(count * self.depth)):
                name = f"block{i}{chr(ord('a') + j)}"
                stages[name] = functools.partial(block, stride=stride if j == 0 else 1, expansion=expansion)
        return stages | {"top": functools.partial(end, 1280, 1, 1)}

    def hub_name(self, stage, layer):
        if stage in _TIMM_ENDS:
            return _TIMM_ENDS[stage][layer]
        group, block = int(stage[5]) - 1, ord(stage[6]) - ord("a")
        return f"blocks.{group}.{block}.{(_TIMM if group else _TIMM_FIRST)[layer]}"


def _variant(name, width, depth, size, md5):
    file = WeightFile(f"https://storage.googleapis.com/keras-applications/efficientnet{name}_notop.h5", md5=md5)
    return functools.partial(EfficientNet, width=width, depth=depth, input_size=(size, size), weight_file=file)


VARIANTS: dict[str, Callable[..., EfficientNet]] = {
    f"efficientnet_{name}": _variant(name, *rest)
    for name, *rest in (
        ("b0", 1.0, 1.0, 224, "50bc09e76180e00e4465e1a485ddc09d"),
        ("b1", 1.0, 1.1, 240, "74c4e6b3e1f6a1eea24c589628592432"),
        ("b2", 1.1, 1.2, 260, "111f8e2ac8aa800a7a99e3239f7bfb39"),
        ("b3", 1.2, 1.4, 300, "af6d107764bb5b1abb91932881670226"),
        ("b4", 1.4, 1.8, 380, "ebc24e6d6c33eaebbd558eafbeedf1ba"),
        ("b5", 1.6, 2.2, 456, "38879255a25d3c92d5e44e04ae6cec6f"),
        ("b6", 1.8, 2.6, 528, "9ecce42647a20130c1f39a5d4cb75743"),
        ("b7", 2.0, 3.1, 600, "cbcfe4450ddf6f3ad90b1b398090fe4a"),
    )
} | {
    # sizes are those of timm, which divides by halves where training took (x - 127) / 128; the newest weights are taken
    f"efficientnet_lite{name}": functools.partial(
        EfficientNetLite,
        width=width,
        depth=depth,
        input_size=(size, size),
        variant=f"timm/tf_efficientnet_lite{name}.in1k",
    )
    for name, width, depth, size in (
        (0, 1.0, 1.0, 224),
        (1, 1.0, 1.1, 240),
        (2, 1.1, 1.2, 260),
        (3, 1.2, 1.4, 300),
        (4, 1.4, 1.8, 380),
    )
}
