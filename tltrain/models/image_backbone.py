"""What the backbones of images share: their sizes, the scaling of their pixels, their BatchNorm layers."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tltrain import hub
from tltrain.data.kinds.images import Images
from tltrain.errors import ConfigError, WeightsError
from tltrain.models import hub_config
from tltrain.models.backbone import Backbone
from tltrain.models.layers import BatchNorm

CAFFE_MEAN = (103.939, 116.779, 123.68)  # blue, green, red
# red, green, blue, in 0..1
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# scalings by a mean and a deviation
NORMALIZED = {
    "tf": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "torch": (IMAGENET_MEAN, IMAGENET_STD),
    "clip": (CLIP_MEAN, CLIP_STD),
}


def scale_pixels(x: jax.Array, pixels: str, dtype: jnp.dtype) -> jax.Array:
    """Scales `x` `[B, H, W, 3]`, RGB in 0..255 of any dtype, to what a backbone was trained on; see `scaled`."""
    return scaled(x.astype(jnp.float32), pixels).astype(dtype)


def scaled(x: Any, pixels: str) -> Any:
    """Float `x` `[B, H, W, 3]`, RGB in 0..255, scaled; of any library, since it is made of operators alone.

    `"tf"` is `x / 127.5 - 1`, `"caffe"` is BGR minus the ImageNet mean, `"torch"` is `x / 255` minus the mean, divided
    by the deviation, `"clip"` the same with those of CLIP, `"raw"` is `x`, `"unit"` is `x / 255` (the scaling of many
    tutorials, wrong for every backbone here), `"tf_128"` is `x / 128 - 1`. Source:
    `keras/src/applications/imagenet_utils.py` and, of the last, its neighbour `efficientnet_v2.py`.
    """
    if pixels == "tf":
        return x / 127.5 - 1.0
    if pixels == "tf_128":
        return x / 128.0 - 1.0
    if pixels == "caffe":
        return x[..., ::-1] - np.asarray(CAFFE_MEAN, np.float32)
    if pixels in ("torch", "clip"):
        mean, std = (np.asarray(numbers, np.float32) for numbers in NORMALIZED[pixels])
        return (x / 255.0 - mean) / std
    if pixels == "unit":
        return x / 255.0
    if pixels == "raw":
        return x
    raise ValueError(f"unknown pixel scaling {pixels!r}")


class ImageBackbone(Backbone):
    """A backbone of RGB images 0..255 `[B, H, W, 3]`, whose stages are maps `[B, H, W, C]`.

    A subclass declares what its pretrained weights expect: `pixels`, a scaling of `scaled`, and `input_size`.
    """

    batch_norm_momentum: float | None = None  # None: as the backbone was trained
    input_size: tuple[int, int] = (224, 224)  # height and width of the images it was trained on
    pixels: str = "tf"

    kind = Images
    min_size: ClassVar[int] = 32
    poolings: ClassVar[tuple[str, ...]] = ("auto",)  # values that `model.pool` may have

    def resolve(self, config: ConfigDict) -> None:
        """A `data.image_size` of None becomes that of the backbone, and published weights are those of ImageNet.

        Raises:
            ConfigError: a value it cannot have.
        """
        if config.model.weights == "pretrained":
            config.model.weights = "imagenet"
        if config.model.pool not in self.poolings:
            raise ConfigError(
                f"model.pool = {config.model.pool!r}, allowed with {config.model.backbone}: "
                f"{' or '.join(map(repr, self.poolings))}"
            )
        if config.data.image_size is None:
            config.data.image_size = self.input_size
        if min(config.data.image_size) < self.min_size:
            raise ConfigError(
                f"data.image_size = {config.data.image_size}, allowed with {config.model.backbone}: at least "
                f"{self.min_size} pixels each"
            )

    def check_files(self, files: hub.Pretrained) -> None:
        """They say the pixels it was trained on, if they say any; what a config asks for instead is left alone."""
        said = hub_config.pixels_in(files) if self.pixels in NORMALIZED else None
        if said is None:
            return
        path, found = said
        if (found.mean, found.std) != NORMALIZED[self.pixels] or found.size not in (None, self.input_size):
            raise WeightsError(
                f"{path} says images of {found.size or self.input_size} pixels with mean {found.mean} and deviation "
                f"{found.std}, {type(self).__name__} of this name was trained on {self.input_size} with mean and "
                f"deviation {NORMALIZED[self.pixels]}; take the model.backbone these weights are of"
            )

    def configured(self, config: ConfigDict) -> "ImageBackbone":
        """Also with its momentum and its scaling of pixels."""
        pixels = self.pixels if config.data.pixels == "backbone" else config.data.pixels
        momentum = config.model.batch_norm_momentum
        return super().configured(config).clone(batch_norm_momentum=momentum, pixels=pixels)

    def facts(self) -> dict[str, Any]:
        """The scaling."""
        return {"pixels": self.pixels}

    def example(self) -> jax.ShapeDtypeStruct:
        """One image of the smallest size."""
        return jax.ShapeDtypeStruct((1, self.min_size, self.min_size, 3), jnp.float32)

    def prepare(self, rows: jax.Array) -> jax.Array:
        """Pixels scaled."""
        return scale_pixels(rows, self.pixels, self.dtype)

    def pool(self, x: jax.Array) -> jax.Array:
        """The mean over the map."""
        return x.astype(jnp.float32).mean((1, 2))

    def batch_norm(self, epsilon: float, momentum: float, use_scale: bool = True) -> Callable[..., BatchNorm]:
        """What makes this backbone's BatchNorm layers, whose own constants are `epsilon` and `momentum`."""
        momentum = momentum if self.batch_norm_momentum is None else self.batch_norm_momentum
        return functools.partial(
            BatchNorm, epsilon=epsilon, momentum=momentum, axis_name=self.axis_name, use_scale=use_scale
        )
