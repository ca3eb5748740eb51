"""NASNet-A (Zoph et al. 2017, arXiv 1707.07012) as in `keras/src/applications/nasnet.py`.

A cell takes what the last two cells made, so stages hand on both, called as there: `{"x": last, "p": the one before}`,
`[B, H, W, C]` each, `p` about twice as high and wide behind a reduction. In a cell Keras orders layers by their
distance from its end: here they are called so too.
"""

import functools
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tltrain.models.backbone import KERAS_FILES, WeightFile
from tltrain.models.convolution import VALID, same_padding
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.layers import BatchNorm, Conv, conv_bn, normalize
from tltrain.models.pooling import avg_pool, max_pool
from tltrain.models.xception import SeparableConv

EPSILON, MOMENTUM = 1e-3, 0.9997
_AROUND = ((1, 1), (1, 1))


class Stem(nn.Module):
    """An unpadded convolution of 3x3 with BatchNorm: ends with Keras' `stem_bn1`."""

    features: int
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Maps `[B, H, W, C]` to `x` alone, `[B, about H / 2, about W / 2, features]`."""
        conv = Conv(self.features, (3, 3), (2, 2), padding=VALID, name="conv1")
        return {"x": conv_bn(x, conv, self.norm(self.features, name="bn1"), train)}


class Cell(nn.Module):
    """Brings `x` to `h` and `p` to its size and width, and combines both by pairs of operations, see `combined`.

    Beside the result it hands on that of its inputs which `keeps` names; nothing behind the last cell, where the result
    goes through ReLU.
    """

    features: int
    norm: Callable[..., BatchNorm]
    keeps: str | None = "x"

    name_of_cell: ClassVar[str]  # in its layers
    begins_with: ClassVar[tuple[str, str]]  # the order of layers that make `h` and `p`

    @nn.compact
    def __call__(self, inputs: dict[str, jax.Array], train: bool) -> dict[str, jax.Array] | jax.Array:
        """Maps `x` and, where there is one, `p` to those of the next cell; the last to `[B, H, W, D]`."""
        x = inputs["x"]
        halved = "p" in inputs and inputs["p"].shape[1:3] != x.shape[1:3]
        p = self.halved(inputs["p"]) if halved else inputs.get("p")

        def squeezed():
            conv = Conv(self.features, name=f"{self.name_of_cell}_conv_1")
            return conv_bn(nn.relu(x), conv, self.norm(self.features, name=f"{self.name_of_cell}_bn_1"), train)

        def adjusted():
            if p is None:
                return x
            norm = self.norm(self.features, name="adjust_bn")
            if halved:
                return normalize(p, norm, train)
            return conv_bn(nn.relu(p), Conv(self.features, name="adjust_conv_projection"), norm, train)

        make = {"h": squeezed, "p": adjusted}
        y = self.combined(train, **{name: make[name]() for name in self.begins_with})
        return {"x": y, "p": inputs[self.keeps]} if self.keeps else nn.relu(y)

    def halved(self, p: jax.Array) -> jax.Array:
        """Every other position of `p` and, beside it, those diagonally between them, each by a 1x1 convolution."""
        p = nn.relu(p)
        between = jnp.pad(p, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
        halves = [
            Conv(self.features // 2, strides=(2, 2), name=f"adjust_conv_{i}")(half)
            for i, half in enumerate((p, between), 1)
        ]
        return jnp.concatenate(halves, axis=-1)

    def separable(self, train: bool, **inputs: tuple[jax.Array, int, int]) -> dict[str, jax.Array]:
        """Each of `inputs`, `(x, kernel size, stride)`, through two separable convolutions, of which one has stride."""
        outputs = {name: x for name, (x, *_) in inputs.items()}
        for i in (1, 2):
            for name, (_, size, stride) in inputs.items():
                strides = (stride, stride) if i == 1 else (1, 1)
                called = f"{self.name_of_cell}_{name}"
                conv = SeparableConv(self.features, (size, size), strides, name=f"separable_conv_{i}_{called}")
                norm = self.norm(self.features, name=f"separable_conv_{i}_bn_{called}")
                outputs[name] = conv_bn(nn.relu(outputs[name]), conv, norm, train)
        return outputs

    def combined(self, train: bool, h: jax.Array, p: jax.Array) -> jax.Array:
        """The result of the cell from `h` and `p` `[B, H, W, features]`."""
        raise NotImplementedError


class Normal(Cell):
    """The cell that keeps the size: `[B, H, W, 6 * features]`, ends with Keras' `normal_concat_0`."""

    name_of_cell = "normal"
    begins_with = ("p", "h")

    def combined(self, train, h, p):
        right = (p, 3, 1)
        y = self.separable(train, left1=(h, 5, 1), right1=right, left2=(p, 5, 1), right2=right, left5=(h, 3, 1))
        around_h, around_p = (avg_pool(x, (3, 3), (1, 1), _AROUND) for x in (h, p))
        sums = y["left1"] + y["right1"], y["left2"] + y["right2"], around_h + p, around_p + around_p, y["left5"] + h
        return jnp.concatenate([p, *sums], axis=-1)


class Reduction(Cell):
    """The cell that halves it: `[B, H / 2, W / 2, 4 * features]`, ends with Keras' `reduction_concat_stem_1`."""

    name_of_cell = "reduction"
    begins_with = ("h", "p")

    def combined(self, train, h, p):
        y = self.separable(train, left1=(h, 5, 2), right1=(p, 7, 2))
        first = y["left1"] + y["right1"]
        y = self.separable(train, right2=(p, 7, 2), right3=(p, 5, 2), left4=(first, 3, 1))
        # zeros around the map, which count in both poolings
        padded = jnp.pad(h, ((0, 0), *same_padding(h.shape[1:3], (3, 3), (2, 2)), (0, 0)))
        largest, mean = (pool(padded, (3, 3), (2, 2)) for pool in (max_pool, avg_pool))
        second = largest + y["right2"]
        around = avg_pool(first, (3, 3), (1, 1), _AROUND)
        return jnp.concatenate([second, mean + y["right3"], second + around, y["left4"] + largest], axis=-1)


class NASNet(ImageBackbone):
    """Stages `stem`, `reduction_A_block_stem_1`, `reduction_A_block_stem_2`, `normal_A_block_0` ... to the last cell.

    `features` is the width of the first `num_blocks` normal cells; a reduction and as many of twice that follow, twice.
    Where `skip_reduction`, the cell behind a reduction does not see what that took, but what was before.
    The last stage gives `[B, H / 32, W / 32, 24 * features]`.
    """

    features: int = 44
    stem_features: int = 32
    num_blocks: int = 4
    skip_reduction: bool = False

    pixels: str = "tf"

    def stage_factories(self):
        norm, count = self.batch_norm(EPSILON, MOMENTUM), self.num_blocks
        stages: dict[str, Callable[..., nn.Module]] = {"stem": functools.partial(Stem, self.stem_features, norm)}
        for i in (1, 2):
            stages[f"reduction_A_block_stem_{i}"] = functools.partial(Reduction, self.features * i // 4, norm)
        for group in range(3):
            width = self.features * 2**group
            if group:
                keeps = "p" if self.skip_reduction else "x"
                stages[f"reduction_A_block_reduce_{group * count}"] = functools.partial(Reduction, width, norm, keeps)
            for i in range(count):
                keeps = None if (group, i) == (2, count - 1) else "x"
                number = group * count + i + (group > 0)
                stages[f"normal_A_block_{number}"] = functools.partial(Normal, width, norm, keeps)
        return stages

    def keras_name(self, stage, layer):
        return f"stem_{layer}" if stage == "stem" else f"{layer}_{stage.partition('_A_block_')[2]}"


VARIANTS: dict[str, Callable[..., NASNet]] = {
    "nasnet_mobile": functools.partial(
        NASNet,
        weight_file=WeightFile(f"{KERAS_FILES}/nasnet/NASNet-mobile-no-top.h5", md5="1ed92395b5b598bdda52abe5c0dbfd63"),
    ),
    "nasnet_large": functools.partial(
        NASNet,
        features=168,
        stem_features=96,
        num_blocks=6,
        skip_reduction=True,
        input_size=(331, 331),
        weight_file=WeightFile(f"{KERAS_FILES}/nasnet/NASNet-large-no-top.h5", md5="d81d89dc07e6e56530c4e77faddd61b5"),
    ),
}
