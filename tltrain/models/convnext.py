"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) as in `keras/src/applications/convnext.py`, and of the Hub.

Pixels are scaled before the first stage, where Keras has a layer for it. As in Keras without top, the average over the
map is normalised last. Stochastic depth, whose rate is zero in Keras, is not part of it.
"""

import functools
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tltrain.models.backbone import HUGGING_FACE, KERAS_FILES, Layout, WeightFile
from tltrain.models.convolution import VALID
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import Conv, LayerScale, gelu

DEPTHS, WIDTHS = (3, 3, 9, 3), (96, 192, 384, 768)  # blocks and channels between one downsampling and the next
EPSILON = 1e-6
# what transformers calls layers of the stem and of blocks
_HUB_NAMES = {
    "conv": "patch_embeddings",
    "layernorm": "layernorm",
    "depthwise_conv": "dwconv",
    "pointwise_conv_1": "pwconv1",
    "pointwise_conv_2": "pwconv2",
    "layer_scale": "layer_scale_parameter",
}
TIMM: Layout = (
    (r"^layernorm\.", "head.norm."),
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.stages\.(\d)\.layers\.", r"stages.\1.blocks."),
    (r"^encoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.layernorm\.", ".norm."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"\.layer_scale_parameter\.gamma$", ".gamma"),
)


class GroupedConv(Conv):
    """A depthwise convolution that Keras has as a `Conv2D` of as many groups as channels."""

    depthwise: bool = True

    @property
    def keras_class(self) -> str:
        """The class of this layer in Keras."""
        return "Conv2D"


class Dense(nn.Dense):
    """A product with `kernel` `[C, D]` and the sum with `bias` `[D]`, at each place of a map."""

    keras_class: ClassVar[str] = "Dense"


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over channels, its moments in float32; parameters `scale` and `bias`, float32 `[C]`."""

    epsilon: float = EPSILON
    use_fast_variance: bool = False

    keras_class: ClassVar[str] = "LayerNormalization"


class Stem(nn.Module):
    """Patches of 4x4 as channels, normalised: ends with Keras' `convnext_tiny_stem`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 4, W / 4, features]`."""
        x = Conv(self.features, (4, 4), (4, 4), padding=VALID, use_bias=True, name="conv")(x)
        return LayerNorm(dtype=x.dtype, name="layernorm")(x)


class Downsampling(nn.Module):
    """Normalisation, then patches of 2x2 as channels: ends with Keras' `convnext_tiny_downsampling_block_0`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 2, W / 2, features]`."""
        x = LayerNorm(dtype=x.dtype, name="layernorm")(x)
        return Conv(self.features, (2, 2), (2, 2), padding=VALID, use_bias=True, name="conv")(x)


class Block(nn.Module):
    """Filter depthwise by 7x7, normalise, widen four times, GELU, narrow, scale, and add the input."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to the same shape."""
        features = x.shape[-1]
        y = GroupedConv(features, (7, 7), use_bias=True, name="depthwise_conv")(x)
        y = LayerNorm(dtype=x.dtype, name="layernorm")(y)
        y = Dense(4 * features, dtype=x.dtype, name="pointwise_conv_1")(y)
        y = Dense(features, dtype=x.dtype, name="pointwise_conv_2")(gelu(y))
        return x + LayerScale(name="layer_scale")(y)


class Head(nn.Module):
    """The average over the map, normalised."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, 1, 1, C]`."""
        average = x.astype(jnp.float32).mean((1, 2), keepdims=True)
        return LayerNorm(dtype=x.dtype, name="layernorm")(average)


class ConvNeXt(ImageBackbone):
    """Stages `stem`, `stage_0_block_0` ..., `downsampling_block_0` before those of the next width, ..., `head`.

    Features are `[B, 1, 1, widths[-1]]`, pooled before the last normalisation. `variant` begins the names of Keras.
    """

    variant: str = "convnext_tiny"
    depths: tuple[int, ...] = DEPTHS
    widths: tuple[int, ...] = WIDTHS

    pixels: str = "torch"

    hub_prefixes = ("convnext.",)
    hub_unused = (r"classifier\..*", r"head\.fc\..*")
    alike = True
    hub_layouts = (HUGGING_FACE, TIMM)

    def stage_factories(self):
        stages: dict[str, Callable[..., nn.Module]] = {"stem": functools.partial(Stem, self.widths[0])}
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if i:
                stages[f"downsampling_block_{i - 1}"] = functools.partial(Downsampling, width)
            stages |= {f"stage_{i}_block_{j}": Block for j in range(depth)}
        return stages | {"head": Head}

    def hub_name(self, stage, layer):
        if stage == "head":
            return layer
        if stage == "stem":
            return f"embeddings.{_HUB_NAMES[layer]}"
        if stage.startswith("downsampling"):
            return f"encoder.stages.{int(stage[-1]) + 1}.downsampling_layer.{int(layer == 'conv')}"
        _, i, _, j = stage.split("_")
        return f"encoder.stages.{i}.layers.{j}.{_HUB_NAMES[layer]}"

    def keras_name(self, stage, layer):
        if stage == "head":
            return None
        if stage.startswith("downsampling"):
            return f"{self.variant}_{stage.replace('block', layer)}"
        return f"{self.variant}_{stage}_{layer}"


def _variant(name, depths, widths, sha256):
    file = WeightFile(f"{KERAS_FILES}/convnext/{name}_notop.h5", sha256=sha256)
    return functools.partial(ConvNeXt, variant=name, depths=depths, widths=widths, weight_file=file)


DEEP = (3, 3, 27, 3)
VARIANTS: dict[str, Callable[..., ConvNeXt]] = {
    name: _variant(name, *rest)
    for name, *rest in (
        ("convnext_tiny", DEPTHS, WIDTHS, "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"),
        ("convnext_small", DEEP, WIDTHS, "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"),
        (
            "convnext_base",
            DEEP,
            (128, 256, 512, 1024),
            "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
        ),
        (
            "convnext_large",
            DEEP,
            (192, 384, 768, 1536),
            "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd",
        ),
        (
            "convnext_xlarge",
            DEEP,
            (256, 512, 1024, 2048),
            "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05",
        ),
    )
}
