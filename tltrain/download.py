"""Pretrained weight files from the network: fetched once, verified always."""

import hashlib
import os
import urllib.request
from pathlib import Path

from rich.progress import wrap_file

from tltrain.errors import WeightsError
from tltrain.models.backbone import Backbone, WeightFile


def sha256_of(path: Path) -> str:
    """Hex digest of a file; raises WeightsError where it cannot be read."""
    try:
        if not path.is_file():
            raise WeightsError(f"no weight file at {path}; set model.weights to a Keras .h5, or to 'imagenet'")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {path}; {error.strerror}; check the path and its permissions") from error


def cache_dir() -> Path:
    """Where downloads are kept: `$TLTRAIN_CACHE`, else `~/.cache/tltrain` (or below `$XDG_CACHE_HOME`)."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tltrain"
    return Path(os.environ.get("TLTRAIN_CACHE") or default)


def imagenet(backbone: Backbone) -> Path:
    """The verified local copy of the ImageNet weights of `backbone`, downloaded on first use.

    Raises:
        WeightsError: no verified file is known for this variant, or as `download`.
    """
    file = backbone.weight_file()
    if file is None:
        raise WeightsError(
            f"no ImageNet file with a known sha256 for this variant of {type(backbone).__name__}; "
            "fetch the Keras file without top yourself and give its path as model.weights"
        )
    return download(file, local(file).parent)


def local(file: WeightFile) -> Path:
    """Where the copy of `file` is kept, be it there or not."""
    return cache_dir() / "weights" / file.url.rpartition("/")[2]


def download(file: WeightFile, directory: Path) -> Path:
    """The verified local copy of `file`, fetched to `directory` on first use.

    Raises:
        WeightsError: no network, or bytes whose size or sha256 is not the pinned one. A partial file never stands
            under the final name.
    """
    path = directory / file.url.rpartition("/")[2]
    if not path.exists():
        try:
            _fetch(file, path)
        except OSError as error:
            raise WeightsError(
                f"cannot download the pretrained weights; {error}; fetch {file.url} by hand and put it at {path}"
            ) from error
    if path.stat().st_size != file.num_bytes or (found := sha256_of(path)) != file.sha256:
        found = f"{path.stat().st_size} bytes" if path.stat().st_size != file.num_bytes else f"sha256 {found}"
        raise WeightsError(
            f"{path} is not the published file; it has {found}, expected {file.num_bytes} bytes, sha256 {file.sha256}; "
            "remove it and start again"
        )
    return path


def _fetch(file: WeightFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(file.url, timeout=30) as response, part.open("wb") as out:
            size = int(response.headers.get("Content-Length", file.num_bytes))
            with wrap_file(response, size, description=path.name) as reader:
                while chunk := reader.read(1 << 20):
                    out.write(chunk)
                    if out.tell() > file.num_bytes:
                        break
            out.flush()
            os.fsync(out.fileno())
        if part.stat().st_size != file.num_bytes or sha256_of(part) != file.sha256:
            raise WeightsError(
                f"{file.url} did not send the published file; {part.stat().st_size} bytes, sha256 {sha256_of(part)}, "
                f"expected {file.num_bytes} bytes, sha256 {file.sha256}; try again, or put the right file at {path}"
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
