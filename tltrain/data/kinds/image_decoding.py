"""Encoded image -> pixels the backbone sees: one function for training, evaluation and prediction.

Pillow decodes and resizes, so this needs no TensorFlow; its decoders of `FORMATS` alone, since each more is a risk with
files of unknown origin. The result is uint8; the scaling a backbone expects happens on the device.
"""

import contextlib
import ctypes
import io
import itertools
import logging
import re
import warnings

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from tltrain.data.files import kind_of
from tltrain.data.kinds.image_augment import Augment, distorted, random_box
from tltrain.errors import reason_of

FORMATS = ("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF")  # that are read; of several frames or pages the first
MAX_PIXELS = 100_000_000  # of an image file; a larger one is refused from its header
MAX_SIDE = 65_535  # pixels, as in a JPEG
MAX_SCANNED = 100 * MAX_PIXELS  # pixels times scans of a JPEG: each scan passes over all of them again
MAX_RLE = 8_000_000  # bytes and pixels of a compressed BMP, which Pillow decodes in Python
MAX_PARTS = 10_000  # tiny ones of a file above `_LARGE`, of each of which Pillow makes objects
_LARGE = 8 << 20  # bytes
# a segment of a JPEG or a chunk of a PNG, of at most 64 bytes
_PART = re.compile(rb"\xff[\xe1-\xef\xfe]\0[\2-\x40]|\0\0\0[\0-\x40][A-Za-z]{4}")
_STRIP = 1 << 22  # pixels that are laid on white at a time
_PICTURES = ("HEIC", "AVIF", "SVG", "JPEG 2000", "JPEG XL", "Photoshop", "OpenEXR", "ICO", "PDF", "camera raw", "DICOM")
_ORIENTATION, _NEW_SUBFILE_TYPE = 0x112, 254  # tags of EXIF and TIFF
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow raises from twice as many on, before a decoder takes memory
TiffImagePlugin.READ_LIBTIFF = True  # Pillow's own reader makes objects for as many strips as a file claims
# what is wrong with an image is its reason; set once, since to suppress warnings for a block is not thread-safe
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
# libtiff prints by itself; where the library of Pillow hides it, it goes on to
with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


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
    """The RGB image of a file in one of `FORMATS`, at its own size; of several frames or pages the first.

    Grey becomes three equal channels, transparency is laid on white, CMYK is converted, EXIF rotation is applied. An
    image whose EXIF cannot be read is taken as it stands, not refused: its pixels are sound, and most are upright.
    Limits are checked by its header, before the pixels take memory: at most 12 bytes a pixel, of WebP 17.

    Raises:
        OSError: another kind of file, damaged or too large, with the reason on one line; nothing else, whatever the
            decoder raises.
    """
    kind = kind_of(encoded)
    if kind in _PICTURES:
        raise OSError(f"{kind}, which is not read; save it as JPEG or PNG")
    if kind not in FORMATS:
        raise OSError(f"{kind}, not an image")
    try:
        with _opened(encoded, kind) as opened:
            refusal = _refusal(opened, encoded)
            if not refusal:
                opened.load()
                turn, image = _turn(opened), _to_rgb(opened)
                image.info = {}  # a comment of a GIF does not fit the JPEG file of a thumbnail
                return image.transpose(turn) if turn is not None else image
    except Image.DecompressionBombError:
        refusal = f"more than {MAX_PIXELS:,} pixels"
    except UnidentifiedImageError as error:
        raise OSError(f"damaged {kind}, or a rare kind of it") from error
    except Exception as error:
        raise OSError(f"damaged {kind}: {reason_of(error)}") from error
    raise OSError(refusal)


def _opened(encoded, kind):
    parts = _PART.finditer(encoded) if kind in ("JPEG", "PNG") and len(encoded) > _LARGE else iter(())
    if next(itertools.islice(parts, MAX_PARTS, None), None):
        raise OSError(f"more than {MAX_PARTS:,} segments or chunks that hold next to nothing")
    try:
        return Image.open(io.BytesIO(encoded), formats=(kind,))
    except Exception:
        if kind != "JPEG" or b"Exif\0\0" not in encoded:
            raise
        return Image.open(io.BytesIO(encoded.replace(b"Exif\0\0", b"none\0\0")), formats=(kind,))


def _refusal(opened, encoded):
    """Why an image of at most `MAX_PIXELS` is not decoded, by its header; "" where it is."""
    size, pixels = f"{opened.width} x {opened.height} pixels", opened.width * opened.height
    if max(opened.size) > MAX_SIDE:
        return f"{size}, more than {MAX_SIDE:,} a side"
    most = len(encoded) // 2 if opened.format in ("JPEG", "MPO") else 1  # scans, of the bytes of a marker alone
    scans = encoded.count(b"\xff\xda") if most * pixels > MAX_SCANNED else 1
    if scans * pixels > MAX_SCANNED:
        return f"{size} in {scans} scans, more than {MAX_SCANNED:,}"
    if opened.format == "BMP" and opened.tile[0][0] == "bmp_rle" and max(len(encoded), pixels) > MAX_RLE:
        return f"{size} in a compressed BMP, more than {MAX_RLE:,}"
    if opened.format == "TIFF":
        return _tiff_refusal(opened)
    return ""


def _tiff_refusal(opened):
    if opened.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0) * opened.tag_v2.get(TiffImagePlugin.TILELENGTH, 0) > MAX_PIXELS:
        return f"a TIFF with tiles of more than {MAX_PIXELS:,} pixels"
    if opened.tag_v2.get(_NEW_SUBFILE_TYPE) == 1:
        return "a TIFF that starts with a thumbnail, as camera raw does, which is not read; save it as JPEG or PNG"
    if opened.mode in ("I", "F"):
        return "a TIFF of 32 bits a value, of which none is said to be white; save it with 8 or 16"
    return ""


def _turn(image):
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # of EXIF that is damaged, or XMP
        return None


def _to_rgb(image):
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgb, rows = Image.new("RGB", image.size), max(_STRIP // image.width, 1)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        rgb.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return rgb


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
