"""DenseNet (Huang et al. 2016, arXiv 1608.06993) as in `keras/src/applications/densenet.py`."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from tltrain.models.backbone import KERAS_FILES, WeightFile
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import BatchNorm, Conv, conv_bn, normalize
from tltrain.models.pooling import avg_pool
from tltrain.models.resnet import Stem
from tltrain.models.resnet_v2 import Post

DEPTHS = {"121": (6, 12, 24, 16), "169": (6, 12, 32, 32), "201": (6, 12, 48, 32)}
EPSILON, MOMENTUM = 1.001e-5, 0.99


class DenseLayer(nn.Module):
    """Normalise, squeeze by 1x1, filter by 3x3; the result stands beside the input: ends with `conv2_block1_concat`."""

    growth: int
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, C + growth]`."""
        width = 4 * self.growth
        y = nn.relu(normalize(x, self.norm(x.shape[-1], name="0_bn"), train))
        y = nn.relu(conv_bn(y, Conv(width, name="1_conv"), self.norm(width, name="1_bn"), train))
        return jnp.concatenate([x, Conv(self.growth, (3, 3), name="2_conv")(y)], axis=-1)


class Transition(nn.Module):
    """Normalise, halve the channels by 1x1, average 2x2: ends with Keras' `pool2_pool`."""

    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 2, W / 2, C / 2]`."""
        y = nn.relu(normalize(x, self.norm(x.shape[-1], name="bn"), train))
        return avg_pool(Conv(x.shape[-1] // 2, name="conv")(y), (2, 2), (2, 2))


class DenseNet(ImageBackbone):
    """Stages `conv1`, `conv2_block1` ... `pool2`, `conv3_block1` ... `conv5_block16`, `bn`.

    Features are `[B, H / 32, W / 32, C]`, `C` 1024, 1664 or 1920.
    """

    depths: tuple[int, ...] = DEPTHS["121"]
    growth: int = 32

    pixels: str = "torch"

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM)
        stages: dict[str, Callable[..., nn.Module]] = {
            "conv1": functools.partial(Stem, 2 * self.growth, norm, use_bias=False)
        }
        for group, depth in enumerate(self.depths, 2):
            for i in range(1, depth + 1):
                stages[f"conv{group}_block{i}"] = functools.partial(DenseLayer, self.growth, norm)
            top = group == len(self.depths) + 1
            stages["bn" if top else f"pool{group}"] = functools.partial(Post if top else Transition, norm)
        return stages

    def keras_name(self, stage, layer):
        return layer if stage == "bn" else f"{stage}_{layer}"


_MD5 = {
    "121": "30ee3e1110167f948a6b9946edeeb738",
    "169": "b8c4d4c20dd625c148057b9ff1c1176b",
    "201": "c13680b51ded0fb44dff2d8f86ac8bb1",
}
VARIANTS: dict[str, Callable[..., DenseNet]] = {
    f"densenet{depth}": functools.partial(
        DenseNet,
        depths=DEPTHS[depth],
        weight_file=WeightFile(
            f"{KERAS_FILES}/densenet/densenet{depth}_weights_tf_dim_ordering_tf_kernels_notop.h5", md5=md5
        ),
    )
    for depth, md5 in _MD5.items()
}
