"""Cache files that know whether they are whole: a sha256 of their bytes stands at their end."""

import contextlib
import hashlib
import os
from pathlib import Path

_DIGEST = 32  # bytes


def write(path: Path, content: bytes) -> None:
    """Keeps `content` at `path`; where it cannot be written nothing is kept, and it is made again when it is missed."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content + hashlib.sha256(content).digest())
        part.replace(path)


def read(path: Path) -> bytes | None:
    """What `write` kept; None where there is nothing, or not those bytes."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    content, digest = whole[:-_DIGEST], whole[-_DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else None
