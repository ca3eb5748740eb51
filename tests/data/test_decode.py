"""Images are known by content; what is damaged or hostile is unreadable with its reason, quickly, and nothing else."""

import dataclasses
import io
import json
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGES
from PIL import Image

from tltrain.config import default
from tltrain.data import files, inspect, pipeline, sources
from tltrain.data.files import kind_of, read_file
from tltrain.data.kinds.image_decoding import FORMATS, MAX_PIXELS, decode, load_image
from tltrain.errors import DataError, reason_of
from tltrain.experiment import train
from tltrain.pages import thumbnails


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# four colours that every mode of a format can hold
PIXELS = np.repeat(np.repeat(np.uint8([[[255] * 3, [0] * 3], [[0] * 3, [255] * 3]]), 16, 0), 16, 1)
TESTS = Path(__file__).parents[1]
COLOURS = np.repeat(np.repeat(np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255] * 3]]), 16, 0), 16, 1)
SECOND = Image.new("RGB", (32, 32), (9, 99, 199))  # another frame or page
DEEP = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)


def saved(format, mode, pixels=COLOURS, **options):
    return encode(Image.fromarray(pixels).convert(mode), format, **options), pixels


FRAMES = {"save_all": True, "append_images": [SECOND]}
SOUND = {
    "jpeg": lambda: saved("JPEG", "RGB", quality=100, subsampling=0),
    "jpeg cmyk": lambda: saved("JPEG", "CMYK", quality=100),
    "png animated": lambda: saved("PNG", "RGB", **FRAMES),
    "webp": lambda: saved("WebP", "RGB", lossless=True),
    "webp transparent": lambda: saved("WebP", "RGBA", lossless=True, exact=True),
    "webp animated": lambda: saved("WebP", "RGB", lossless=True, **FRAMES),
    "bmp": lambda: saved("BMP", "RGB"),
    "bmp palette": lambda: saved("BMP", "P"),
    "bmp 1 bit": lambda: saved("BMP", "1", PIXELS),
    "gif": lambda: saved("GIF", "P"),
    "gif animated": lambda: saved("GIF", "P", **FRAMES),
    "gif grey": lambda: saved("GIF", "L", PIXELS),
    "tiff": lambda: saved("TIFF", "RGB"),
    "tiff pages": lambda: saved("TIFF", "RGB", compression="tiff_lzw", **FRAMES),
    "tiff deflate": lambda: saved("TIFF", "RGBA", compression="tiff_adobe_deflate"),
    "tiff fax": lambda: saved("TIFF", "1", PIXELS, compression="group4"),
    "tiff cmyk": lambda: saved("TIFF", "CMYK", compression="packbits"),
    "tiff 16 bit": lambda: (encode(DEEP, "TIFF"), PIXELS),
}


@pytest.mark.parametrize("kind", SOUND)
def test_every_format_is_known_by_content_and_gives_its_first_picture(kind):
    encoded, expected = SOUND[kind]()
    assert kind_of(encoded[:512]).upper() == kind.split()[0].upper() and kind_of(encoded) in FORMATS
    found = np.asarray(decode(encoded)).astype(int)
    assert found.shape == (32, 32, 3) and np.abs(found - expected).max() <= 8 * kind.startswith("jpeg")
    assert load_image(encoded, (8, 8), "crop").shape == (8, 8, 3)


KINDS = {
    "empty": b"",
    "text": "Ein Wörterbuch,\nviele Zeilen\n".encode(),
    "HTML": b"<!DOCTYPE html><html><body>404",
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "XML": b'<?xml version="1.0"?><annotation/>',
    "PDF": b"%PDF-1.7\n",
    "HEIC": b"\0\0\0\x24ftypheic\0\0\0\0mif1heic",
    "AVIF": b"\0\0\0\x20ftypmif1\0\0\0\0avifmif1",
    "MP4": b"\0\0\0\x20ftypisom\0\0\2\0",
    "zip": b"PK\x03\x04\x14\0",
    "gzip": b"\x1f\x8b\x08\0",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "camera raw": b"II*\0\x10\0\0\0CR\x02\0",
    "unknown": bytes(100),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_image_is_named(kind):
    assert kind_of(KINDS[kind]) == kind
    with pytest.raises(OSError, match=kind):
        decode(KINDS[kind])


def test_text_that_starts_like_a_bitmap_is_text():
    assert kind_of(b"BMW builds cars, and this line goes on for a while") == "text"


def exif_of(*tags):
    """An EXIF block by hand, since Pillow writes no wrong types: (tag, type, count, four bytes)."""
    entries = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3].ljust(4, b"\0") for tag in sorted(tags))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(12)


TURN = (0x112, 3, 1, b"\6")
BROKEN_EXIF = {  # and whether the picture is turned all the same
    "wrong type": (exif_of(TURN, (0x11A, 2, 4, b"72/")), True),
    "points nowhere": (exif_of(TURN, (0x11A, 5, 1, b"\xff" * 4)), True),
    "giant count": (exif_of(TURN, (0x10F, 2, 2**31, b"\1")), True),
    "orientation is text": (exif_of((0x112, 2, 4, b"six")), False),
    "no directory": (b"Exif\0\0" + bytes(range(200)), False),
    "cut": (b"Exif\0\0II", False),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize("kind", BROKEN_EXIF)
def test_broken_exif_does_not_cost_the_picture(kind, format):
    exif, turned = BROKEN_EXIF[kind]
    image = Image.fromarray(COLOURS[:20])
    found = decode(encode(image, format, exif=exif))
    assert found.size == ((20, 32) if turned else (32, 20))


def chunk(name, data, length=None):
    size = len(data) if length is None else length
    return struct.pack(">I", size) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *chunks, depth=8, color=2):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(*tags, width=8, height=8):
    """One page of grey by hand: (tag, type, count, value)."""
    plain = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8)}
    every = plain | {278: (4, 1, height), 279: (4, 1, 64)} | {tag: rest for tag, *rest in tags}
    entries = b"".join(struct.pack("<HHII", tag, *every[tag]) for tag in sorted(every))
    return b"II*\0" + struct.pack("<IH", 8, len(every)) + entries + bytes(100)


def webp(width, height):
    body = (
        b"WEBPVP8X" + struct.pack("<II", 10, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


JPEG = encode(Image.fromarray(COLOURS), "JPEG")
SCAN = b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0"
HOSTILE = {
    "cut": (lambda: JPEG[:-40], "damaged JPEG"),
    "only a header": (lambda: JPEG[:20], "damaged JPEG"),
    "png cut": (lambda: encode(Image.effect_noise((64, 64), 50))[:900], "damaged PNG"),
    "gif without frames": (lambda: b"GIF89a\x08\0\x08\0\0\0\0;", "damaged GIF"),
    "tall png": (lambda: png(1, 99_000_000), "1 x 99000000 pixels, more than 65,535 a side"),
    "large png": (lambda: png(20_000, MAX_PIXELS // 20_000 + 1), "more than 100,000,000 pixels"),
    "giant png": (lambda: png(2**31 - 1, 2**31 - 1), "more than 100,000,000 pixels"),
    "large rgba 16 bit": (lambda: png(60_000, 60_000, depth=16, color=6), "more than 100,000,000 pixels"),
    "large gif": (lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;", "more than 100,000,000"),
    "large webp": (lambda: webp(16_000, 16_000), "more than 100,000,000 pixels"),
    "large tiff": (lambda: tiff(width=60_000, height=60_000), "more than 100,000,000"),
    "large bmp": (
        lambda: b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 60_000, 60_000, 1, 24) + bytes(24),
        "100,000,000",
    ),
    "large tiles": (lambda: tiff((322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 8), (325, 4, 1, 9)), "tiles"),
    "giant tag": (lambda: tiff((258, 3, 2**31, 8)), "damaged TIFF"),
    "giant strips": (lambda: tiff((273, 4, 2**30, 8)), "damaged TIFF"),
    "unknown compression": (lambda: tiff((259, 3, 1, 999)), "damaged TIFF"),
    "camera raw": (lambda: tiff((254, 4, 1, 1)), "camera raw"),
    "float tiff": (lambda: encode(Image.new("F", (8, 8)), "TIFF"), "32 bits a value"),
    "text bomb": (lambda: png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 26)))), "damaged PNG"),
    "profile bomb": (lambda: png(8, 8, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(1 << 26)))), "damaged PNG"),
    "chunk longer than file": (lambda: png(8, 8, chunk(b"tEXt", b"k\0v", 2**31 - 1)), "damaged PNG"),
    "a million chunks": (lambda: png(8, 8, chunk(b"prIv", b"") * 1_000_000), "hold next to nothing"),
    "many scans": (lambda: encode(Image.new("L", (2000, 2000)), "JPEG")[:-2] + SCAN * 2_600, "2601 scans"),
    "slow bmp": (
        lambda: b"BM" + bytes(8) + struct.pack("<IIiiHHI", 1078, 40, 9000, 9000, 1, 8, 1) + bytes(1100),
        "compressed BMP",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_damaged_or_hostile_is_unreadable_quickly_and_in_little_memory(kind):
    make, reason = HOSTILE[kind]
    encoded = make()
    peak, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match=reason) as caught:
            load_image(encoded, (8, 8), "stretch")
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 150 << 10  # KiB
    assert str(caught.value).isprintable() and len(str(caught.value)) < 160


def test_any_exception_of_a_decoder_is_a_reason_on_one_line(monkeypatch):
    for error in (AttributeError("x"), struct.error(), MemoryError(), RecursionError("deep"), KeyError("a\x1b[31m\nb")):

        def load(self, error=error):
            raise error

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
        with pytest.raises(OSError, match="damaged JPEG: ") as caught:
            decode(JPEG)
        assert str(caught.value).isprintable()
    assert len(reason_of(ValueError("long " * 1000))) <= 120


def test_neither_warnings_nor_messages_of_decoders_reach_the_terminal():
    code = (
        f"import sys; sys.path[:0] = ['{TESTS}', '{TESTS / 'data'}']\n"
        "from test_decode import *\n"
        "for make, _ in [*HOSTILE.values(), (lambda: encode(Image.fromarray(COLOURS), 'TIFF', compression='tiff_lzw')"
        "[:200], '')]:\n"
        "    with pytest.raises(OSError): decode(make())\n"
        "for exif, _ in BROKEN_EXIF.values(): decode(encode(Image.fromarray(COLOURS), 'JPEG', exif=exif))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def make_socket(path):
    os.chdir(path.parent)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(40 << 30)


SPECIAL = {
    "pipe": (os.mkfifo, "a named pipe, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
    "folder": (lambda path: path.mkdir(), "a folder, not a file"),
    "socket": (make_socket, "a socket, not a file"),
    "sparse": (make_sparse, "40,960 MiB, more than the 256 MiB"),
    "gone": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "loop": (lambda path: path.symlink_to(path.name), "symbolic links"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_of_bounded_size_are_read(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, reason = SPECIAL[kind]
    make(tmp_path / "x.jpg")
    started = time.monotonic()
    with pytest.raises(OSError, match=reason):
        read_file(tmp_path / "x.jpg")
    assert time.monotonic() - started < 1


def test_a_file_is_read_through_a_link_and_not_beyond_the_limit(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(JPEG)
    (tmp_path / "b").symlink_to("a")
    assert read_file(tmp_path / "b") == JPEG
    monkeypatch.setattr(files, "MAX_BYTES", len(JPEG) - 1)
    with pytest.raises(OSError, match="more than"):
        read_file(tmp_path / "a")


def split_of(images, read):
    config = default()
    config.data.update(source=f"folder:{images}", splits=("train[:75%]", "train[75%:]"))
    return dataclasses.replace(sources.load(config, IMAGES).splits["train"], read=read)


def batches(split, corrupt):
    index, mask = pipeline.rows(split.num_examples, 8)
    return list(pipeline.from_examples(split, index, mask, corrupt))


def test_whatever_reading_an_image_raises_is_an_unreadable_image(images, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    errors = {1: AttributeError("a\nb"), 2: MemoryError(), 3: PermissionError(13, "Permission denied")}

    def read(i):
        if i in errors:
            raise errors[i]
        return read_file(tmp_path / "pipe") if i == 4 else JPEG

    said = []
    corrupt = pipeline.Corrupt(split_of(images, read), 1.0, said.append)
    found = batches(corrupt.split, corrupt)
    assert sorted(corrupt.indices) == [1, 2, 3, 4]
    assert sum(batch["mask"].sum() for batch in found) == corrupt.split.num_examples - 4
    reasons = sorted(line.rpartition(": ")[2] for line in said)
    assert reasons == ["MemoryError", "Permission denied", "a b", "a named pipe, not a file"]


def test_an_error_of_the_data_set_itself_ends_the_pipeline_as_it_is(images):
    calls = []

    def read(i):
        calls.append(i)
        raise DataError("prepare it again")

    split = split_of(images, read)
    with pytest.raises(DataError) as caught:
        batches(split, pipeline.Corrupt(split, 1.0, print))
    assert str(caught.value) == "prepare it again"
    assert len(calls) < split.num_examples


def test_the_doctor_and_thumbnails_go_on_past_what_cannot_be_read(images, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    split = split_of(images, lambda i: JPEG if i else read_file(tmp_path / "pipe"))
    looked = inspect.look(split, np.arange(3), lambda done: None)
    assert looked.errors == {0: "a named pipe, not a file"} and looked.readable.tolist() == [False, True, True]
    assert set(thumbnails._make(split, list(split.ids)[:2])) == {split.ids[1]}


def test_a_picture_leaves_what_its_file_says_beside_the_pixels():
    encoded = encode(Image.fromarray(COLOURS).convert("P"), "GIF", comment=b"long" * 40_000)
    assert decode(encoded).info == {} and encode(decode(encoded), "JPEG")


def test_a_run_goes_on_past_damaged_files_and_counts_them(tiny, images, tmp_path):
    root = shutil.copytree(images, tmp_path / "copy")
    paths = sorted((root / "light").iterdir())
    picture = Image.fromarray(COLOURS)
    picture.save(paths[0], exif=BROKEN_EXIF["wrong type"][0])
    picture.save(paths[1], "WebP")
    paths[2].write_text("no image")
    paths[3].unlink()
    paths[3].symlink_to("/dev/null")
    tiny.data.source = f"folder:{root}"
    tiny.data.max_corrupt = 0.2
    train.run(tiny, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert sum(report["num_corrupt"].values()) == 1 and sum(report["num_examples"].values()) == 47
