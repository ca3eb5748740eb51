"""Cache files that know whether they are whole: a sha256 of their bytes stands at their end."""

import contextlib
import hashlib
import os
from pathlib import Path

_DIGEST = 32  # bytes


def write(path: Path, *content: bytes | memoryview) -> None:
    """Keeps the pieces of `content` at `path`; where they cannot be written nothing is kept, and is made again."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            digest = hashlib.sha256()
            for piece in content:
                file.write(piece)
                digest.update(piece)
            file.write(digest.digest())
        part.replace(path)


def read(path: Path) -> bytes | None:
    """What `write` kept; None where there is nothing, or not those bytes."""
    try:
        with path.open("rb") as file:
            content, digest = file.read(max(os.fstat(file.fileno()).st_size - _DIGEST, 0)), file.read()
    except OSError:
        return None
    return content if hashlib.sha256(content).digest() == digest else None
