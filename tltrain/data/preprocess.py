"""Encoded image -> pixels the backbone sees: one function for training, evaluation and prediction.

Pillow decodes and resizes, so this needs no TensorFlow; JPEG and PNG alone, since its other decoders are a risk with
files of unknown origin. The result is uint8; the scaling a backbone expects happens on the device.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_PIXELS = 100_000_000  # of an image file; a larger one is refused from its header
Image.MAX_IMAGE_PIXELS = None  # the check of Pillow, which only warns, is replaced by ours


@dataclass(frozen=True)
class Augment:
    """Strengths of random augmentation; see `config.data.augment`. All draws follow from `seed`, epoch and example."""

    horizontal_flip: bool
    vertical_flip: bool
    min_area: float
    rotation: float
    color: float
    seed: int


def load_image(
    encoded: bytes, size: tuple[int, int], resize: str, augment: Augment | None = None, key: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Decodes and resizes one image.

    Args:
        encoded: as for `decode`.
        size: height and width of the result in pixels.
        resize: `"stretch"` maps the whole image onto `size`; `"crop"` keeps the aspect ratio and cuts the longer side.
        augment: random augmentation, or None.
        key: (epoch, example), which with `augment.seed` decides every draw.

    Returns:
        RGB, uint8 `[height, width, 3]`. Bilinear with antialiasing.

    Raises:
        OSError: as `decode`.
    """
    image = decode(encoded)
    if augment is None:
        return np.asarray(_resize(image, size, resize))
    return _augmented(image, size, resize, augment, np.random.default_rng([augment.seed, *key]))


def decode(encoded: bytes) -> Image.Image:
    """The RGB image of a JPEG or PNG file, at its own size.

    Grey becomes three equal channels, transparency is laid on white, CMYK is converted, EXIF rotation is applied.

    Raises:
        OSError: not a JPEG or PNG, truncated or too large.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise OSError(f"{opened.width}x{opened.height} pixels, more than {MAX_PIXELS}")
            return _to_rgb(ImageOps.exif_transpose(opened))
    except (ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _resize(image, size, resize, box=None):
    box = box or (0, 0, *image.size)
    if resize == "crop":
        left, top, right, bottom = box
        scale = min((right - left) / size[1], (bottom - top) / size[0])
        half_width, half_height = scale * size[1] / 2, scale * size[0] / 2
        x, y = (left + right) / 2, (top + bottom) / 2
        box = (max(x - half_width, 0), max(y - half_height, 0), x + half_width, y + half_height)
        box = (*box[:2], min(box[2], image.width), min(box[3], image.height))
    # along rows, then along columns: left alone, Pillow takes the order that is faster, which differs by its version
    left, top, right, bottom = box
    image = image.resize((size[1], image.height), Image.Resampling.BILINEAR, box=(left, 0, right, image.height))
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=(0, top, size[1], bottom))


def _augmented(image, size, resize, augment, rng):
    image = _resize(image, size, resize, _random_box(image.size, augment.min_area, rng))
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
    return np.asarray(image)


def _random_box(size, min_area, rng):
    """A random box in an image of `size`, with `min_area` to 1 of its area and its aspect ratio times 3/4 to 4/3."""
    area, ratio = rng.uniform(min_area, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    x, y = rng.random(2)
    width = min(np.sqrt(area * ratio), 1.0) if min_area < 1 else 1.0
    height = min(area / width, 1.0)
    left, top = x * (1 - width), y * (1 - height)
    box = (left, top, left + width, top + height)
    return tuple(min(float(b) * n, n) for b, n in zip(box, size * 2, strict=True))


def _rotate(image, angle):
    """Rotates about the centre; the corners are filled by reflection."""
    border = round(0.21 * max(image.size))  # (sqrt(2) - 1) / 2: what a rotation can uncover
    padded = np.pad(np.asarray(image), ((border, border), (border, border), (0, 0)), mode="reflect")
    turned = Image.fromarray(padded).rotate(angle, Image.Resampling.BILINEAR)
    return turned.crop((border, border, border + image.width, border + image.height))
