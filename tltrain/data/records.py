"""Files of records as TFDS writes them, in which each record is read by its position.

A TFRecord file is a row of records, each of 8 bytes of its length, 4 of their checksum, its data and 4 of theirs
(tensorflow/core/lib/io/record_writer.h): where records begin is found in one pass, and kept in the cache folder. An
ArrayRecord file has an index of its own.
"""

import functools
import os
import struct
from array import array
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np

from tltrain.data.content import Content
from tltrain.errors import DataError
from tltrain.places import cache_dir
from tltrain.runtime import sealed

_HEADER = struct.Struct("<QI")  # length of the data, checksum of the length
_CHECKSUM = struct.Struct("<I")
_FRAME = _HEADER.size + _CHECKSUM.size  # bytes of a record beside its data
_BLOCK = 1 << 20  # bytes that the pass over a file reads at a time
_NUM_READERS = 64  # ArrayRecord files that are open at a time


class RecordFile(Protocol):
    """So many records; `read` may be called by many threads, and raises where the file is gone or damaged."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes:
        """The data of the record at the position `i`."""


def opened(path: Path, what: Content, form: str) -> RecordFile:
    """The file at `path`, of the contents `what`, in the `form` that TFDS calls so.

    Raises:
        DataError: records of this form are not read by position.
        Exception: the file cannot be read, or is no whole file of records.
    """
    if form == "tfrecord":
        return _TFRecords(path, what.sha256)
    if form == "array_record":
        return _ArrayRecords(path, what.sha256)
    raise DataError(f"{path.name} is in the form {form!r}; at {path.parent}; prepare it as tfrecord or array_record")


class _TFRecords:
    def __init__(self, path: Path, sha256: bytes) -> None:
        self._path, self._name, self._offsets = str(path), path.name, _index(path, sha256)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def read(self, i: int) -> bytes:
        start, size = self._offsets.item(i), self._offsets.item(i + 1) - self._offsets.item(i)
        # opened for each record: of a thousand files none stays open, and it takes a tenth of the time of the rest
        file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.pread(file, size, start)
        finally:
            os.close(file)
        if len(found) == size:
            data = found[_HEADER.size : -_CHECKSUM.size]
            length, checksum = _HEADER.unpack_from(found)[0], _CHECKSUM.unpack_from(found, size - _CHECKSUM.size)[0]
            if length == len(data) and checksum == _masked(data):
                return data
        raise ValueError(f"record {i} of {self._name} is damaged")


class _ArrayRecords:
    def __init__(self, path: Path, sha256: bytes) -> None:
        self._path, self._sha256 = path, sha256

    def __len__(self) -> int:
        return _reader(self._path, self._sha256).num_records()

    def read(self, i: int) -> bytes:
        return _reader(self._path, self._sha256).read([i])[0]


@functools.lru_cache(_NUM_READERS)
def _reader(path: Path, sha256: bytes) -> Any:
    """Of a file of these contents: what it reads at a time is no more than it is asked for."""
    from array_record.python import array_record_module  # where there is none, such files cannot be read

    return array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0", file_reader_buffer_size=1 << 15)


def _index(path: Path, sha256: bytes) -> np.ndarray:
    """Where each record of a TFRecord file begins, and where the last one ends, int64 `[N + 1]`."""
    path_of_index = cache_dir() / "records" / sha256.hex()
    kept = sealed.read(path_of_index)
    if kept is None:
        kept = _offsets(path).tobytes()
        sealed.write(path_of_index, kept)
    return np.frombuffer(kept, np.int64)


def _offsets(path: Path) -> array:
    offsets = array("q", [0])
    with path.open("rb", _BLOCK) as file:
        size = os.fstat(file.fileno()).st_size
        while header := file.read(_HEADER.size):
            if len(header) == _HEADER.size:
                length, checksum = _HEADER.unpack(header)
                end = offsets[-1] + length + _FRAME
                if checksum == _masked(header[: -_CHECKSUM.size]) and end <= size:
                    offsets.append(end)
                    file.seek(end)
                    continue
            raise ValueError(f"record {len(offsets) - 1} of {path.name} is damaged")
    return offsets


def _masked(data: bytes) -> int:
    """CRC-32C, as TFRecord files have it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
