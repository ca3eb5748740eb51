"""InceptionV3 (Szegedy et al. 2015, arXiv 1512.00567) as in `keras/src/applications/inception_v3.py`.

Keras only numbers its layers, so a file is read by their order in `model.layers`. There the layers of a block's
branches alternate, those farthest from the block's end first: here they are called so too.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tltrain.models.backbone import KERAS_FILES, WeightFile
from tltrain.models.convolution import VALID
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import BatchNorm, Conv, conv_bn
from tltrain.models.pooling import avg_pool, max_pool

EPSILON, MOMENTUM = 1e-3, 0.99
# A convolution is (channels, height, width[, stride]) of its kernel; one with a stride is not padded. A branch is
# (name, convolutions), the last of which may be a pair side by side; "pool" begins with an average over 3x3 positions,
# or is the largest of them where it is all there is.
_STEM = (((32, 3, 3, 2), (32, 3, 3, 1), (64, 3, 3)), ((80, 1, 1), (192, 3, 3, 1)))  # each part ends in a pooling


def _mixed_35(pooled):
    double = ((64, 1, 1), (96, 3, 3), (96, 3, 3))
    return ("1x1", ((64, 1, 1),)), ("5x5", ((48, 1, 1), (64, 5, 5))), ("3x3dbl", double), ("pool", ((pooled, 1, 1),))


def _mixed_17(within):
    single = ((within, 1, 1), (within, 1, 7), (192, 7, 1))
    double = ((within, 1, 1), (within, 7, 1), (within, 1, 7), (within, 7, 1), (192, 1, 7))
    return ("1x1", ((192, 1, 1),)), ("7x7", single), ("7x7dbl", double), ("pool", ((192, 1, 1),))


def _mixed_8():
    pair = ((384, 1, 3), (384, 3, 1))
    single, double = ((384, 1, 1), pair), ((448, 1, 1), (384, 3, 3), pair)
    return ("1x1", ((320, 1, 1),)), ("3x3", single), ("3x3dbl", double), ("pool", ((192, 1, 1),))


_TO_17 = ("3x3", ((384, 3, 3, 2),)), ("3x3dbl", ((64, 1, 1), (96, 3, 3), (96, 3, 3, 2))), ("pool", ())
_TO_8 = (
    ("3x3", ((192, 1, 1), (320, 3, 3, 2))),
    ("7x7x3", ((192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2))),
    ("pool", ()),
)
BLOCKS = (
    *(_mixed_35(pooled) for pooled in (32, 64, 64)),
    _TO_17,
    *(_mixed_17(within) for within in (128, 160, 160, 192)),
    _TO_8,
    *(_mixed_8(),) * 2,
)


class ConvNorm(nn.Module):
    """What all blocks are built of: a convolution, BatchNorm without scale, ReLU; called as a function in a stage."""

    width: float
    norm: Callable[..., BatchNorm]

    def layer(self, x: jax.Array, size: tuple[int, ...], name: str, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` by the convolution that `size` describes."""
        features, height, width, *stride = size
        features = max(1, int(features * self.width))
        strides = (stride[0], stride[0]) if stride else (1, 1)
        conv = Conv(features, (height, width), strides, padding=VALID if stride else None, name=name)
        return nn.relu(conv_bn(x, conv, self.norm(features, name=f"{name}_bn"), train))

    def beside(self, inputs: dict[str, jax.Array], branches: tuple[Any, ...], train: bool) -> jax.Array:
        """Concatenates what `branches` make of their `inputs`, `[B, H, W, C]` by their names."""
        outputs = dict(inputs)
        for name, i, size in _in_order(branches):
            if isinstance(size[0], int):
                outputs[name] = self.layer(outputs[name], size, f"{name}_{i}", train)
            else:
                pair = [
                    self.layer(outputs[name], part, f"{name}_{i}{side}", train)
                    for part, side in zip(size, "ab", strict=True)
                ]
                outputs[name] = jnp.concatenate(pair, axis=-1)
        return jnp.concatenate(list(outputs.values()), axis=-1)


def _in_order(branches):
    """`(branch, number, convolution)` by the number of Keras' layers to the end of the block, most first."""
    steps = []
    for name, sizes in branches:
        for i, size in enumerate(sizes):
            pair = not isinstance(sizes[-1][0], int)
            steps.append((3 * (len(sizes) - i) + pair, (name, i + 1, size)))
    return [step for _, step in sorted(steps, key=lambda step: -step[0])]


class Stem(ConvNorm):
    """Five convolutions and two poolings: ends with Keras' second `max_pooling2d`."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, about H / 8, about W / 8, 192]`."""
        for part, sizes in enumerate(_STEM, 1):
            for i, size in enumerate(sizes, 1):
                x = self.layer(x, size, f"conv{part}_{i}", train)
            x = max_pool(x, (3, 3), (2, 2))
        return x


class Mixed(ConvNorm):
    """Branches beside each other: ends with the concatenation that Keras calls `mixed0` ... `mixed10`."""

    branches: tuple[Any, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', D]`, `H'` about `H / 2` where there is a stride."""
        outputs = dict.fromkeys(dict(self.branches), x)
        pooled = dict(self.branches)["pool"]
        around = ((1, 1), (1, 1))
        outputs["pool"] = avg_pool(x, (3, 3), (1, 1), around) if pooled else max_pool(x, (3, 3), (2, 2))
        return self.beside(outputs, self.branches, train)


class InceptionV3(ImageBackbone):
    """Stages `stem`, `mixed0` ... `mixed10`; features are `[B, 8, 8, 2048]` at 299x299, `width` scales the channels."""

    width: float = 1.0
    blocks: tuple[Any, ...] = BLOCKS
    input_size: tuple[int, int] = (299, 299)

    min_size: ClassVar[int] = 75
    pixels: str = "tf"

    def stage_factories(self):
        norm = self.batch_norm(EPSILON, MOMENTUM, use_scale=False)
        stages: dict[str, Callable[..., nn.Module]] = {"stem": functools.partial(Stem, self.width, norm)}
        for i, branches in enumerate(self.blocks):
            stages[f"mixed{i}"] = functools.partial(Mixed, self.width, norm, branches)
        return stages

    def keras_name(self, stage, layer):
        return None


VARIANTS: dict[str, Callable[..., InceptionV3]] = {
    "inception_v3": functools.partial(
        InceptionV3,
        weight_file=WeightFile(
            f"{KERAS_FILES}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
            sha256="fb1dd801d91b5a0eef5585ed26c520630268572acca452ef1ec10d985f77e97d",
            num_bytes=87596580,
        ),
    )
}
