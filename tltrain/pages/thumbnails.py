"""What pages show of examples, kept in the cache folder: a page of a run on stored features reads no file for it."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tltrain.data.split import Split
from tltrain.errors import DataError
from tltrain.places import cache_dir


def of(
    fingerprint: str, wanted: Sequence[str], likely: Sequence[str], read_split: Callable[[], Split]
) -> dict[str, bytes | None]:
    """What `Kind.show` gives of the examples `wanted`, by id; None for one that cannot be read any more.

    Args:
        fingerprint: of the split they belong to, as it was when the run saw it.
        wanted: ids.
        likely: ids of examples that the page of the next run may want: made beside those that are missing.
        read_split: gives the split; called where one is missing, since that may be slow. May raise DataError.
    """
    folder = cache_dir() / "thumbnails" / fingerprint
    found = {example: _stored(_path(folder, example)) for example in wanted}
    missing = [example for example in wanted if found[example] is None]
    if missing:
        with contextlib.suppress(DataError):  # there is no such data any more; the page says so of each
            split = read_split()
            if split.fingerprint == fingerprint:
                made = _make(split, dict.fromkeys([*missing, *likely]))
                _store(folder, made)
                found |= {example: made[example] for example in missing if example in made}
    return found


def _path(folder: Path, example: str) -> Path:
    return folder / f"{hashlib.sha256(example.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"


def _stored(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _store(folder: Path, shown: dict[str, bytes]) -> None:
    with contextlib.suppress(OSError):  # without a cache they are made again
        folder.mkdir(parents=True, exist_ok=True)
        for example, content in shown.items():
            path = _path(folder, example)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(content)
            part.replace(path)


def _make(split: Split, examples: Iterable[str]) -> dict[str, bytes]:
    """That of those examples that are there and can be read."""
    wanted = dict.fromkeys(examples)
    index = {example: i for i, example in enumerate(split.ids) if example in wanted}
    made = {}
    for example in (example for example in wanted if example in index):
        with contextlib.suppress(OSError):
            made[example] = split.kind.show(split.read(index[example]))
    return made
