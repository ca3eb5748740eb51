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

CAFFE_MEAN = (103.939, 116.779, 123.68)  # blue, green, red
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # red, green, blue, in 0..1
KERAS_FILES = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclass(frozen=True)
class WeightFile:
    """A published file of pretrained weights: where it is, and what it must be.

    `sha256` or `md5` is the strongest hash that is published; `num_bytes` is None where no size is.
    """

    url: str
    sha256: str | None = None
    num_bytes: int | None = None
    md5: str | None = None

    @property
    def checksum(self) -> tuple[str, str]:
        """The algorithm and hex digest of the strongest hash."""
        return ("sha256", self.sha256) if self.sha256 else ("md5", self.md5 or "")


@dataclass(frozen=True)
class KerasLayer:
    """Where the arrays of one Keras layer belong: `path` below `params` and `batch_stats`, `class_name` in Keras.

    `name` is None where Keras numbers layers of the class through a session (`conv2d_57`): their order decides.
    """

    name: str | None
    class_name: str
    path: tuple[str, str]


def scale_pixels(x: jax.Array, pixels: str, dtype: jnp.dtype) -> jax.Array:
    """Scales `x` `[B, H, W, 3]`, RGB in 0..255 of any dtype, to what a backbone was trained on; see `scaled`."""
    return scaled(x.astype(jnp.float32), pixels).astype(dtype)


def scaled(x: Any, pixels: str) -> Any:
    """Float `x` `[B, H, W, 3]`, RGB in 0..255, scaled; of any library, since it is made of operators alone.

    `"tf"` is `x / 127.5 - 1`, `"caffe"` is BGR minus the ImageNet mean, `"torch"` is `x / 255` minus the mean, divided
    by the deviation, `"raw"` is `x`, `"unit"` is `x / 255` (the scaling of many tutorials, wrong for every backbone
    here). Source: `keras/src/applications/imagenet_utils.py`.
    """
    if pixels == "tf":
        return x / 127.5 - 1.0
    if pixels == "caffe":
        return x[..., ::-1] - np.asarray(CAFFE_MEAN, np.float32)
    if pixels == "torch":
        return (x / 255.0 - np.asarray(IMAGENET_MEAN, np.float32)) / np.asarray(IMAGENET_STD, np.float32)
    if pixels == "unit":
        return x / 255.0
    if pixels == "raw":
        return x
    raise ValueError(f"unknown pixel scaling {pixels!r}")


class Backbone(nn.Module):
    """The contract of every backbone.

    A subclass declares what its pretrained weights expect and implements `stage_factories`; stages and layers carry
    Keras' own names. Variables: `params` and `batch_stats`, each `{stage: {layer: {leaf: array}}}`. Layers are called
    in the order of `model.layers` in Keras, which is that of its graph by depth: files that give layers no names of
    their own are read by it.
    """

    dtype: jnp.dtype = jnp.float32  # of activations
    batch_norm_momentum: float | None = None  # None: as the backbone was trained
    axis_name: str | None = None  # over which batch statistics are averaged under pmap
    input_size: tuple[int, int] = (224, 224)  # height and width of the images it was trained on
    weight_file: WeightFile | None = None  # of this variant, trained on ImageNet, without top; None: not published

    min_size: ClassVar[int] = 32
    pixels: ClassVar[str]

    def stage_factories(self) -> dict[str, Callable[..., nn.Module]]:
        """Stage name -> what makes its module from `name=`, in forward order."""
        raise NotImplementedError

    def keras_name(self, stage: str, layer: str) -> str | None:
        """What Keras calls `layer` of `stage`; None where it only numbers it."""
        return f"{stage}_{layer}"

    def keras_layers(self) -> list[KerasLayer]:
        """The layers with weights, in the order in which they are called."""
        classes: dict[tuple[str, str], str] = {}

        def note(call, arguments, options, context):
            if context.method_name == "__call__" and (kind := getattr(context.module, "keras_class", None)):
                classes[context.module.path] = kind
            return call(*arguments, **options)

        image = jax.ShapeDtypeStruct((1, self.min_size, self.min_size, 3), jnp.float32)
        with nn.intercept_methods(note):
            # in training, for there no normalisation is folded into a convolution before the call
            jax.eval_shape(functools.partial(self.init, train=True), jax.random.key(0), image)
        return [KerasLayer(self.keras_name(*path), kind, path) for path, kind in classes.items()]

    def batch_norm(self, epsilon: float, momentum: float, use_scale: bool = True) -> Callable[..., BatchNorm]:
        """What makes this backbone's BatchNorm layers, whose own constants are `epsilon` and `momentum`."""
        momentum = momentum if self.batch_norm_momentum is None else self.batch_norm_momentum
        return functools.partial(
            BatchNorm, epsilon=epsilon, momentum=momentum, axis_name=self.axis_name, use_scale=use_scale
        )

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
