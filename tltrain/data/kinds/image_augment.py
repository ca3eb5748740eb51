"""Random augmentation of images, by Pillow: each draw follows from a generator that the caller has seeded."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_GREY = (128, 128, 128)  # where an operation of RandAugment uncovers what the image does not show


@dataclass(frozen=True)
class Augment:
    """Strengths of random augmentation; see `config.data.augment`. All draws follow from `seed`, epoch and example."""

    horizontal_flip: bool
    vertical_flip: bool
    min_area: float
    rotation: float
    color: float
    randaugment: tuple[int, float]
    seed: int


def random_box(size: tuple[int, int], min_area: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A random box in an image of `size`, with `min_area` to 1 of its area and its aspect ratio times 3/4 to 4/3.

    `size` is (width, height) in pixels, the box is (left, top, right, bottom).
    """
    area, ratio = rng.uniform(min_area, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    x, y = rng.random(2)
    width = min(np.sqrt(area * ratio), 1.0) if min_area < 1 else 1.0
    height = min(area / width, 1.0)
    left, top = x * (1 - width), y * (1 - height)
    box = (left, top, left + width, top + height)
    left, top, right, bottom = (min(float(b) * n, n) for b, n in zip(box, size * 2, strict=True))
    return left, top, right, bottom


def distorted(image: Image.Image, augment: Augment, rng: np.random.Generator) -> Image.Image:
    """`image`, RGB, flipped, rotated and changed in colour at random, by at most the strengths of `augment`."""
    flips = rng.random(2) < 0.5
    if augment.horizontal_flip and flips[0]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augment.vertical_flip and flips[1]:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    angle, *factors = rng.uniform(-1, 1, 4)
    if augment.rotation:
        image = _rotate(image, angle * augment.rotation)
    if augment.color:
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhancer, factor in zip(enhancers, factors, strict=True):
            image = enhancer(image).enhance(1 + factor * augment.color)
    return _randaugmented(image, *augment.randaugment, rng)


def _rotate(image, angle):
    """Rotates about the centre; the corners are filled by reflection."""
    border = round(0.21 * max(image.size))  # (sqrt(2) - 1) / 2: what a rotation can uncover
    padded = np.pad(np.asarray(image), ((border, border), (border, border), (0, 0)), mode="reflect")
    turned = Image.fromarray(padded).rotate(angle, Image.Resampling.BILINEAR)
    return turned.crop((border, border, border + image.width, border + image.height))


def _randaugmented(image, num_operations, magnitude, rng):
    """RandAugment (Cubuk et al. 2020, arXiv 1909.13719): so many operations of its 14, drawn with equal chance."""
    for name in rng.choice(list(OPERATIONS), num_operations):
        image = OPERATIONS[name](image, magnitude / 10 * rng.choice((-1, 1)))
    return image


def _enhance(enhancer):
    return lambda image, level: enhancer(image).enhance(1 + 0.9 * level)


def _affine(matrix):
    """`matrix(level, size)` maps (x, y) of the result to the place in the image it shows, as `(a, b, c, d, e, f)`."""

    def transform(image, level):
        data = matrix(level, image.size)
        return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=_GREY)

    return transform


# each by a level from -1 to 1, at 0 the image as it is but for the two that have no strength; ranges of AutoAugment
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, level: image,
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "rotate": lambda image, level: image.rotate(30 * level, Image.Resampling.BILINEAR, fillcolor=_GREY),
    "solarize": lambda image, level: ImageOps.solarize(image, round(256 * (1 - abs(level)))),
    "color": _enhance(ImageEnhance.Color),
    "posterize": lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda level, size: (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_y": _affine(lambda level, size: (1, 0, 0, 0.3 * level, 1, 0)),
    "translate_x": _affine(lambda level, size: (1, 0, 0.45 * level * size[0], 0, 1, 0)),
    "translate_y": _affine(lambda level, size: (1, 0, 0, 0, 1, 0.45 * level * size[1])),
}
