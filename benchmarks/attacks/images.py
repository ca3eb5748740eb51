"""3,000 damaged images through the decoder: each is readable or unreadable with a reason, and nothing else.

    python benchmarks/attacks/images.py

Images of six formats in several modes, with bits flipped, cut, spliced with each other, or with an EXIF block of random
bytes or of tags of wrong types. Prints what became of them, the slowest, and the memory that the process took at most.
Two cores: 10 seconds.
"""

import collections
import io
import resource
import struct
import sys
import time

import numpy as np
from PIL import Image

from tltrain.data.kinds.image_decoding import load_image

COUNT = 3000
SAVED = {  # modes of each format, options of each
    "JPEG": (("L", "RGB", "CMYK"), ({}, {"progressive": True})),
    "PNG": (("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), ({},)),
    "WebP": (("RGB", "RGBA"), ({}, {"lossless": True})),
    "BMP": (("1", "L", "P", "RGB"), ({},)),
    "GIF": (("L", "P"), ({}, {"save_all": True})),
    "TIFF": (
        ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"),
        [{"compression": name} for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")],
    ),
}
WITH_EXIF = ("JPEG", "PNG", "WebP")


def main():
    rng = np.random.default_rng(0)
    sound = [one for name in SAVED for one in images(name, rng)]
    counts, reasons, others = collections.Counter(), collections.Counter(), []
    slowest = 0.0
    for i in range(COUNT):
        damage = DAMAGES[i % len(DAMAGES)]
        encoded = damage(sound, rng)
        started = time.perf_counter()
        try:
            pixels = load_image(encoded, (64, 64), "stretch")
            assert pixels.shape == (64, 64, 3)
            counts["readable"] += 1
        except OSError as error:
            reason = str(error)
            if reason.isprintable() and 0 < len(reason) <= 160:
                counts["unreadable"] += 1
                reasons[reason.partition(":")[0]] += 1
            else:
                others.append(f"reason {reason!r}")
        except BaseException as error:
            others.append(f"{damage.__name__}: {error!r}")
        slowest = max(slowest, time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{COUNT} damaged images: readable {counts['readable']}, unreadable {counts['unreadable']}, anything else "
        f"{len(others)}; slowest {slowest:.2f} s, peak {peak:.0f} MiB"
    )
    print("\n".join(f"{count:5} {reason}" for reason, count in reasons.most_common(10)))
    print("\n".join(others[:10]))
    return bool(others)


def images(name, rng):
    """Sound files of a format, in several modes."""
    modes, options = SAVED[name]
    pixels = np.cumsum(rng.integers(-9, 10, (90, 120, 4)), 0).astype(np.uint8)
    picture = Image.fromarray(pixels)
    for mode in modes:
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8) if mode == "I;16" else picture.convert(mode)
        for option in options:
            frames = {"append_images": [image.rotate(90)]} if option.get("save_all") else {}
            exif = {"exif": exif_of(rng)} if name in WITH_EXIF else {}
            out = io.BytesIO()
            image.save(out, name, **option, **frames, **exif)
            yield out.getvalue()


def exif_of(rng):
    """An EXIF block of a few tags, of which most have a wrong type, count or place, or of random bytes."""
    if rng.random() < 0.2:
        return b"Exif\0\0" + rng.bytes(int(rng.integers(1, 200)))
    tags = [(0x112, 3, 1, 6), *((int(rng.choice(TAGS)), *rng.integers(0, (14, 9, 300)).tolist()) for _ in range(4))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + rng.bytes(64)


TAGS = (0x100, 0x101, 0x103, 0x10F, 0x112, 0x11A, 0x11B, 0x128, 0x8769, 0x8825, 0x927C, 0xA005)


def flipped(sound, rng):
    encoded = bytearray(sound[rng.integers(len(sound))])
    reach = len(encoded) if rng.random() < 0.5 else min(len(encoded), 200)  # headers are a small part of a file
    for at in rng.integers(0, reach, rng.integers(1, 20)):
        encoded[at] ^= 1 << rng.integers(8)
    return bytes(encoded)


def truncated(sound, rng):
    encoded = sound[rng.integers(len(sound))]
    return encoded[: rng.integers(len(encoded))]


def spliced(sound, rng):
    one, other = (sound[rng.integers(len(sound))] for _ in range(2))
    at = int(rng.integers(8, 400))
    return one[:at] + other[at:]


def with_exif(sound, rng):
    picture = Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8))
    out = io.BytesIO()
    picture.save(out, WITH_EXIF[rng.integers(3)], exif=exif_of(rng))
    return out.getvalue()


def overwritten(sound, rng):
    encoded = bytearray(sound[rng.integers(len(sound))])
    at, values = int(rng.integers(0, min(len(encoded), 300))), (0, 1, 0xFF, 0x7F, 0x80)
    encoded[at : at + 4] = bytes([values[rng.integers(5)]]) * 4  # sizes, counts and offsets at their extremes
    return bytes(encoded)


DAMAGES = (flipped, truncated, spliced, with_exif, overwritten)

if __name__ == "__main__":
    sys.exit(main())
