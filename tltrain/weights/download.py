"""Pretrained weight files from the network: fetched once, verified always.

Own code rather than pooch, which reads to the end whatever a server sends: here a file ends where it is too large.
"""

import hashlib
import os
import urllib.request
from pathlib import Path

from rich.progress import wrap_file

from tltrain import places
from tltrain.errors import WeightsError, foreign_errors
from tltrain.models.backbone import Backbone, WeightFile

MAX_BYTES = 2**30  # of a file whose size is not published


def num_bytes(path: Path) -> int:
    """The size of a weight file; raises WeightsError where there is none."""
    with foreign_errors(WeightsError, f"cannot read {path}", "set model.weights to a file that can be read"):
        if path.is_file():
            return path.stat().st_size
    raise WeightsError(f"no weight file at {path}; set model.weights to one that is there, or to 'imagenet'")


def digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file by `algorithm`, "sha256" or "md5"; raises WeightsError where it cannot be read."""
    num_bytes(path)
    remedy = "check the path and its permissions"
    with foreign_errors(WeightsError, f"cannot read {path}", remedy), path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def imagenet(backbone: Backbone) -> Path:
    """The verified local copy of the ImageNet weights of `backbone`, downloaded on first use.

    Raises:
        WeightsError: no verified file is known for this variant, or as `download`.
    """
    file = backbone.weight_file
    if file is None:
        raise WeightsError(
            f"no ImageNet file with a known hash for this variant of {type(backbone).__name__}; "
            "fetch the Keras file without top yourself and give its path as model.weights"
        )
    return download(file, local(file).parent)


def local(file: WeightFile) -> Path:
    """Where the copy of `file` is kept, be it there or not."""
    return places.cache_dir() / "weights" / file.url.rpartition("/")[2]


def download(file: WeightFile, directory: Path) -> Path:
    """The verified local copy of `file`, fetched to `directory` on first use.

    Raises:
        WeightsError: no network, or bytes whose size or hash is not the published one. A partial file never stands
            under the final name.
    """
    path = directory / file.url.rpartition("/")[2]
    if not path.exists():
        remedy = f"fetch {file.url} by hand and put it at {path}"
        with foreign_errors(WeightsError, "cannot download the pretrained weights", remedy):
            _fetch(file, path)
    if (found := _described(file, path)) != (expected := _expected(file)):
        raise WeightsError(
            f"{path} is not the published file; it has {found}, expected {expected}; remove it and start again"
        )
    return path


def _expected(file):
    size = "" if file.num_bytes is None else f"{file.num_bytes} bytes, "
    return size + " ".join(file.checksum)


def _described(file, path):
    """What stands at `path`, in the words of `_expected`."""
    size = "" if file.num_bytes is None else f"{path.stat().st_size} bytes, "
    algorithm = file.checksum[0]
    return f"{size}{algorithm} {digest(path, algorithm)}"


def _fetch(file: WeightFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    limit = file.num_bytes or MAX_BYTES
    try:
        with urllib.request.urlopen(file.url, timeout=30) as response, part.open("wb") as out:
            size = int(response.headers.get("Content-Length", limit))
            with wrap_file(response, size, description=path.name) as reader:
                while chunk := reader.read(1 << 20):
                    out.write(chunk)
                    if out.tell() > limit:
                        break
            out.flush()
            os.fsync(out.fileno())
        if (found := _described(file, part)) != (expected := _expected(file)):
            raise WeightsError(
                f"{file.url} did not send the published file; it sent {found}, expected {expected}; "
                f"try again, or put the right file at {path}"
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
