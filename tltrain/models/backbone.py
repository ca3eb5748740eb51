"""What a backbone is: an ordered list of named stages that can be run in part."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tltrain.models.layers import BatchNorm

CAFFE_MEAN = (103.939, 116.779, 123.68)


@dataclass(frozen=True)
class WeightFile:
    """A published file of pretrained weights: where it is, and what it must be."""

    url: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class KerasLayer:
    """Where the arrays of one Keras layer belong: `path` below `params` and `batch_stats`, `class_name` in Keras."""

    name: str
    class_name: str
    path: tuple[str, ...]


def scale_pixels(x: jax.Array, pixels: str, dtype: jnp.dtype) -> jax.Array:
    """Scales `x` `[B, H, W, 3]`, RGB in 0..255 of any dtype, to what a backbone was trained on; see `scaled`."""
    return scaled(x.astype(jnp.float32), pixels).astype(dtype)


def scaled(x: Any, pixels: str) -> Any:
    """Float `x` `[B, H, W, 3]`, RGB in 0..255, scaled; of any library, since it is made of operators alone.

    `"tf"` is `x / 127.5 - 1`, `"caffe"` is BGR minus the ImageNet mean, `"unit"` is `x / 255` (the scaling of many
    tutorials, wrong for every backbone here). Source: `keras/src/applications/imagenet_utils.py`.
    """
    if pixels == "tf":
        return x / 127.5 - 1.0
    if pixels == "caffe":
        return x[..., ::-1] - np.asarray(CAFFE_MEAN, np.float32)
    if pixels == "unit":
        return x / 255.0
    raise ValueError(f"unknown pixel scaling {pixels!r}")


class Backbone(nn.Module):
    """The contract of every backbone.

    A subclass declares what its pretrained weights expect and implements the four methods below; stages and layers
    carry Keras' own names. Variables: `params` and `batch_stats`, each `{stage: {layer: {leaf: array}}}`.
    """

    dtype: jnp.dtype = jnp.float32  # of activations
    batch_norm_momentum: float | None = None  # None: as the backbone was trained
    axis_name: str | None = None  # over which batch statistics are averaged under pmap

    input_size: ClassVar[tuple[int, int]]
    min_size: ClassVar[int]
    pixels: ClassVar[str]

    def stage_factories(self) -> dict[str, Callable[..., nn.Module]]:
        """Stage name -> what makes its module from `name=`, in forward order."""
        raise NotImplementedError

    def keras_layers(self) -> list[KerasLayer]:
        """The layers with weights, in the order in which Keras makes them."""
        raise NotImplementedError

    def keras_application(self) -> tuple[str, dict[str, Any]]:
        """The function of `keras.applications` that makes this network, and its arguments beside size and weights."""
        raise NotImplementedError

    def weight_file(self) -> WeightFile | None:
        """The ImageNet weights of this variant without top, or None where no verified file is known."""
        raise NotImplementedError

    def batch_norm(self, epsilon: float, momentum: float) -> Callable[..., BatchNorm]:
        """What makes this backbone's BatchNorm layers, whose own constants are `epsilon` and `momentum`."""
        momentum = momentum if self.batch_norm_momentum is None else self.batch_norm_momentum
        return functools.partial(BatchNorm, epsilon=epsilon, momentum=momentum, axis_name=self.axis_name)

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in forward order."""
        return tuple(self.stage_factories())

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, start: int = 0, stop: int | None = None) -> jax.Array:
        """Runs stages `[start, stop)` on scaled pixels, or on the activations `[B, H, W, C]` before stage `start`.

        `train` lets BatchNorm normalise by the batch and move its statistics; without it they are used as they are.
        """
        factories = list(self.stage_factories().items())
        for name, make in factories[start : len(factories) if stop is None else stop]:
            x = make(name=name)(x, train)
        return x
