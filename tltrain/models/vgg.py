"""VGG16 and VGG19 (Simonyan & Zisserman 2014, arXiv 1409.1556) as in `keras/src/applications/vgg16.py`, `vgg19.py`.

Their three dense layers are not part of the backbone: the last maps are averaged, as with every other backbone.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from tltrain.models.backbone import KERAS_FILES, WeightFile
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import Conv
from tltrain.models.pooling import max_pool

WIDTHS = (64, 128, 256, 512, 512)


class Block(nn.Module):
    """Convolutions of 3x3 with bias, each with ReLU, then the largest of 2x2: ends with Keras' `block1_pool`."""

    features: int
    num_convs: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 2, W / 2, features]`."""
        for i in range(1, self.num_convs + 1):
            x = nn.relu(Conv(self.features, (3, 3), use_bias=True, name=f"conv{i}")(x))
        return max_pool(x, (2, 2), (2, 2))


class VGG(ImageBackbone):
    """Stages `block1` ... `block5`; features are `[B, H / 32, W / 32, 512]`."""

    num_convs: tuple[int, ...] = (2, 2, 3, 3, 3)  # of each block
    widths: tuple[int, ...] = WIDTHS

    pixels: str = "caffe"

    def stage_factories(self):
        blocks = zip(self.widths, self.num_convs, strict=True)
        return {f"block{i}": functools.partial(Block, *block) for i, block in enumerate(blocks, 1)}


def _variant(name, num_convs, md5):
    url = f"{KERAS_FILES}/{name}/{name}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return functools.partial(VGG, num_convs=num_convs, weight_file=WeightFile(url, md5=md5))


VARIANTS: dict[str, Callable[..., VGG]] = {
    "vgg16": _variant("vgg16", (2, 2, 3, 3, 3), "6d6bbae143d832006294945121d1f1fc"),
    "vgg19": _variant("vgg19", (2, 2, 4, 4, 4), "253f8cb515780f3b799900260a226db6"),
}
