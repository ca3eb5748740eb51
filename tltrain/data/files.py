"""What a file is, by its first bytes, and its bytes, before a decoder sees them."""

import os
import stat
from pathlib import Path

MAX_BYTES = 256 << 20  # of a file of an image; a larger one is refused from its size

_MAGIC = (  # (kind, position, bytes), the first that fits
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("GIF", 0, b"GIF87a"),
    ("GIF", 0, b"GIF89a"),
    ("WebP", 8, b"WEBPVP8"),
    ("camera raw", 8, b"CR\x02"),
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("TIFF", 0, b"II+\0"),
    ("TIFF", 0, b"MM\0+"),
    ("camera raw", 0, b"IIU\0"),
    ("camera raw", 0, b"IIR"),
    ("camera raw", 0, b"FUJIFILMCCD-RAW"),
    ("camera raw", 4, b"ftypcrx "),
    ("AVIF", 4, b"ftypavi"),
    ("HEIC", 4, b"ftyphei"),
    ("HEIC", 4, b"ftyphev"),
    ("HEIC", 4, b"ftypmif1"),
    ("HEIC", 4, b"ftypmsf1"),
    ("MP4", 4, b"ftyp"),
    ("AVI", 8, b"AVI "),
    ("WAV", 8, b"WAVE"),
    ("Matroska", 0, b"\x1aE\xdf\xa3"),
    ("JPEG 2000", 4, b"jP  \r\n"),
    ("JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("JPEG XL", 4, b"JXL \r\n"),
    ("JPEG XL", 0, b"\xff\x0a"),
    ("Photoshop", 0, b"8BPS"),
    ("OpenEXR", 0, b"v/1\x01"),
    ("DICOM", 128, b"DICM"),
    ("ICO", 0, b"\0\0\x01\0"),
    ("PDF", 0, b"%PDF"),
    ("PostScript", 0, b"%!PS"),
    ("zip", 0, b"PK\x03\x04"),
    ("gzip", 0, b"\x1f\x8b"),
    ("bzip2", 0, b"BZh"),
    ("xz", 0, b"\xfd7zXZ\0"),
    ("7z", 0, b"7z\xbc\xaf\x27\x1c"),
    ("rar", 0, b"Rar!"),
    ("tar", 257, b"ustar"),
    ("HDF5", 0, b"\x89HDF\r\n"),
    ("NumPy", 0, b"\x93NUMPY"),
    ("Git LFS pointer", 0, b"version https://git-lfs"),
)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes of the header behind the first 14 bytes
_FIRST = 512  # bytes that `kind_of` looks at
_NO_FILE = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def kind_of(first: bytes) -> str:
    """What a file is that starts with the bytes `first`, of which 512 are enough, whatever its name.

    One of `image_decoding.FORMATS`, or a word for what else it is: "HEIC", "PDF", "HTML", "text", "empty" ...
    """
    first = bytes(first[:_FIRST])
    if not first:
        return "empty"
    if first[:2] == b"BM" and int.from_bytes(first[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if first[4:8] == b"ftyp" and b"avif" in first[8:64]:  # a HEIF file says in its list of brands that it is AVIF
        return "AVIF"
    kinds = (kind for kind, at, magic in _MAGIC if first[at : at + len(magic)] == magic)
    return next(kinds, None) or _kind_of_text(first)


def _kind_of_text(first):
    text = first.decode("utf-16" if first[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", "ignore").lower()
    if "<svg" in text:
        return "SVG"
    if "<html" in text or "<!doctype html" in text:
        return "HTML"
    if text.lstrip("\ufeff \t\r\n").startswith("<?xml"):
        return "XML"
    lost = len(first) - len(first.decode("utf-8", "ignore").encode())
    return "text" if lost < 4 and all(c.isprintable() or c in "\t\r\n\f\ufeff" for c in text) else "unknown"


def read_first(path: Path) -> bytes:
    """The first bytes of the file at `path`, as many as `kind_of` looks at; none of what cannot be read."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(_FIRST) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return b""


def read_file(path: Path, most: int | None = None) -> bytes:
    """The bytes of the regular file at `path`, or behind a link there.

    Raises:
        OSError: there is none, it is a pipe, a socket, a device or a folder, or larger than `most` bytes, None:
            `MAX_BYTES`; nothing is read of these, so none can hang the process or fill its memory.
    """
    most = MAX_BYTES if most is None else most
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{_NO_FILE.get(stat.S_IFMT(found.st_mode), 'a special file')}, not a file")
    if found.st_size > most:
        raise OSError(f"{found.st_size / 2**20:,.0f} MiB, more than the {most >> 20} MiB that are read of a file")
    # without O_NONBLOCK a pipe that took the place of the file since would be waited for
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(found.st_size)
