"""Small pictures of examples, kept in the cache folder: a page of a run on stored features reads no image for them."""

import base64
import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tltrain.data import preprocess
from tltrain.data.split import Split
from tltrain.errors import DataError
from tltrain.places import cache_dir

_LONGEST_SIDE = 160  # pixels


def of(
    fingerprint: str, wanted: Sequence[str], likely: Sequence[str], read_split: Callable[[], Split]
) -> dict[str, str | None]:
    """The pictures of the examples `wanted`, as `data:` URLs by id; None for one that cannot be read any more.

    Args:
        fingerprint: of the split they belong to, as it was when the run saw it.
        wanted: ids.
        likely: ids of examples that the page of the next run may want: made beside those that are missing.
        read_split: gives the split; called where a picture is missing, since that may be slow. May raise DataError.
    """
    folder = cache_dir() / "thumbnails" / fingerprint
    found = {example: _stored(_path(folder, example)) for example in wanted}
    missing = [example for example in wanted if found[example] is None]
    if missing:
        with contextlib.suppress(DataError):  # there is no such data any more; the page says so of each picture
            split = read_split()
            if split.fingerprint == fingerprint:
                made = _make(split, dict.fromkeys([*missing, *likely]))
                _store(folder, made)
                found |= {example: made[example] for example in missing if example in made}
    return {example: _url(picture) for example, picture in found.items()}


def _path(folder: Path, example: str) -> Path:
    return folder / f"{hashlib.sha256(example.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.jpg"


def _stored(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _store(folder: Path, pictures: dict[str, bytes]) -> None:
    with contextlib.suppress(OSError):  # without a cache they are made again
        folder.mkdir(parents=True, exist_ok=True)
        for example, picture in pictures.items():
            path = _path(folder, example)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(picture)
            part.replace(path)


def _make(split: Split, examples: Iterable[str]) -> dict[str, bytes]:
    """JPEG files of at most `_LONGEST_SIDE` pixels a side, of those examples that are there and can be read."""
    index = {example: i for i, example in enumerate(split.ids)}
    made = {}
    for example in (example for example in examples if example in index):
        with contextlib.suppress(OSError):
            image = preprocess.decode(split.read(index[example]))
            image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
            out = io.BytesIO()
            image.save(out, "JPEG", quality=80)
            made[example] = out.getvalue()
    return made


def _url(picture: bytes | None) -> str | None:
    return None if picture is None else f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
