"""Encoded image -> pixels the backbone sees: one function for training, evaluation and prediction.

Pillow decodes and resizes, so this needs no TensorFlow; JPEG and PNG alone, since its other decoders are a risk with
files of unknown origin. The result is uint8; the scaling a backbone expects happens on the device.
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tltrain.data.augment import Augment, distorted, random_box

MAX_PIXELS = 100_000_000  # of an image file; a larger one is refused from its header
Image.MAX_IMAGE_PIXELS = None  # the check of Pillow, which only warns, is replaced by ours


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
    except UnidentifiedImageError as error:
        raise OSError("not a JPEG or PNG file") from error
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
    image = _resize(image, size, resize, random_box(image.size, augment.min_area, rng))
    return np.asarray(distorted(image, augment, rng))
