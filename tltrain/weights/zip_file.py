"""A zip that is a weight file: its list of contents and its members are of bounded size before anything is unpacked."""

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

MAX_READ = 2**20  # bytes at once


class _Reader(io.BufferedReader):
    """A file of which `zipfile` can take no list of contents at once that would fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_READ:
            raise ValueError(f"its list of contents has {size} bytes, at most {MAX_READ} are read")
        return super().read(size)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip at `path`; what is damaged raises whatever `zipfile` does, too long a list of contents ValueError."""
    with _Reader(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        yield archive


def check(members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    """Raises ValueError where `members` are packed in a way that is not read, or unpack to more than `max_bytes`.

    A member ends where it has the size it declares.
    """
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"{member.filename} is compressed by method {member.compress_type}, allowed: stored, deflate"
            )
    if (num_bytes := sum(member.file_size for member in members)) > max_bytes:
        what = members[0].filename if len(members) == 1 else "what is in it"
        raise ValueError(f"{what} has {num_bytes} bytes, at most {max_bytes} for this backbone")
