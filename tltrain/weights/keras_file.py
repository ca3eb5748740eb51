"""A Keras weight file, opened as HDF5: alone, or `model.weights.h5` within the zip that a `.keras` file is.

Nothing a file says of itself is believed. HDF5 can point at other files, declare terabytes and run plugins; Keras uses
a small part of it, and that part alone is let in, before a byte of an array is read. Nothing else in a `.keras` file is
looked at: its `config.json` can name code.
"""

import contextlib
import math
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5l, h5z

from tltrain.errors import WeightsError
from tltrain.weights import zip_file

MEMBER = "model.weights.h5"
MAX_DEPTH = 8
MAX_OBJECTS = 5_000  # groups and arrays
MAX_ATTRIBUTES = 100  # of a group or an array
MAX_NAME = 255  # characters
MAX_NAMES_BYTES = 2**20  # of a list of names
MAX_CHUNKS = 4096  # of an array
_FILTERS = {h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_DEFLATE: "gzip", h5z.FILTER_FLETCHER32: "fletcher32"}


@contextlib.contextmanager
def opened(path: Path, max_bytes: int) -> Iterator[h5py.File]:
    """The HDF5 file at `path`, or within the `.keras` file at `path`: its first bytes tell, not its suffix.

    Raises:
        WeightsError: it is neither. What is damaged raises whatever h5py and zipfile do.
    """
    with path.open("rb") as file:
        magic = file.read(8)
    if magic == b"\x89HDF\r\n\x1a\n":
        with h5py.File(path, "r") as file:
            yield file
    elif magic.startswith(b"PK\x03\x04"):
        with tempfile.NamedTemporaryFile(suffix=".h5") as copy:
            _extract(path, copy, max_bytes)
            with h5py.File(copy.name, "r") as file:
                yield file
    else:
        raise WeightsError(
            f"cannot read {path}; it is neither HDF5 (.h5) nor a zip (.keras); "
            "write one by model.save('model.keras') or model.save_weights('model.weights.h5') in Keras"
        )


def _extract(path: Path, copy: Any, max_bytes: int) -> None:
    with zip_file.opened(path) as archive:
        found = [info for info in archive.infolist() if info.filename == MEMBER]
        if len(found) != 1:
            raise ValueError(f"it is a zip with {len(found) or 'no'} {MEMBER}, where a .keras file has one")
        zip_file.check(found, max_bytes)
        with archive.open(found[0]) as member:
            shutil.copyfileobj(member, copy, zip_file.MAX_READ)
    copy.flush()


def datasets(file: h5py.File, max_bytes: int) -> tuple[dict[str, h5py.Dataset], list[str]]:
    """Every dataset below `file` but those of an optimizer, by name, through hard links alone; and what is wrong.

    Raises:
        ValueError: there are more of them than any model has.
    """
    found: dict[str, h5py.Dataset] = {}
    faults, num_bytes, visited = _attribute_faults(file, "/"), 0, len(file)
    stack: list[tuple[str, h5py.Group, int]] = [("", file, 0)]
    while stack:
        prefix, group, depth = stack.pop()
        if depth > MAX_DEPTH or visited > MAX_OBJECTS:
            raise ValueError(f"it has more than {MAX_DEPTH} levels or {MAX_OBJECTS} groups and arrays")
        for raw in group.id:
            key = raw.decode(errors="surrogateescape")
            name = f"{prefix}/{key}" if prefix else key
            if name in ("optimizer_weights", "optimizer"):
                continue
            if len(key) > MAX_NAME or not key.isprintable():
                faults.append(f"unexpected name {key[:40]!a}, allowed: {MAX_NAME} printable characters")
                continue
            if group.id.links.get_info(raw).type != h5l.TYPE_HARD:
                faults.append(f"unexpected {name}: a link to another place, which is not followed")
                continue
            item = group[key]
            faults += _attribute_faults(item, name)
            if isinstance(item, h5py.Group):
                visited += len(item)
                stack.append((name, item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    faults.append(f"unexpected {name}: its data are in another file, which is not followed")
                num_bytes += item.nbytes
                found[name] = item
    if num_bytes > max_bytes:
        faults.append(f"unexpected size: its arrays declare {num_bytes} bytes, at most {max_bytes} for this backbone")
    return found, faults


def _attribute_faults(item, name):
    count = h5a.get_num_attrs(item.id)
    return [f"unexpected {name}: {count} attributes, at most {MAX_ATTRIBUTES}"] if count > MAX_ATTRIBUTES else []


def storage_faults(dataset: h5py.Dataset, label: str) -> list[str]:
    """In what the storage of an array, which has the right shape and dtype, is not one that Keras or h5py choose."""
    faults = []
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if dataset.maxshape != dataset.shape:
        faults.append(f"maximal shape {dataset.maxshape}, expected {dataset.shape}")
    if [code for code in _FILTERS if code in filters] != filters:
        names = ", ".join(_FILTERS.get(code, f"number {code}") for code in filters)
        faults.append(f"filters {names}, allowed: {', '.join(_FILTERS.values())}, each once and in this order")
    if dataset.chunks is None:
        if dataset.id.get_storage_size() != dataset.nbytes:
            faults.append(f"{dataset.id.get_storage_size()} bytes are stored of {dataset.nbytes}")
    elif any(chunk > side for chunk, side in zip(dataset.chunks, dataset.shape, strict=True)):
        faults.append(f"chunks {dataset.chunks} are larger than it")
    elif (wanted := math.prod(map(lambda s, c: -(-s // c), dataset.shape, dataset.chunks))) > MAX_CHUNKS:
        faults.append(f"{wanted} chunks, at most {MAX_CHUNKS}")
    elif (stored := dataset.id.get_num_chunks()) != wanted:
        faults.append(f"{stored} chunks are stored of {wanted}")
    elif not faults and h5z.FILTER_DEFLATE in filters and not _inflates(dataset, filters.index(h5z.FILTER_DEFLATE)):
        faults.append("a chunk grows beyond its size when it is unpacked")
    return [f"unexpected {label}: {fault}" for fault in faults]


def _inflates(dataset, index):
    """Whether no gzip chunk grows beyond its size, which HDF5 does not ask; gzip is filter `index`."""
    num_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    for i in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(i)
        if chunk.size > num_bytes + zip_file.MAX_READ:
            return False
        left_out, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
        if not left_out >> index & 1 and len(zlib.decompressobj().decompress(packed, num_bytes + 1)) > num_bytes:
            return False
    return True


def names_in(item: h5py.Group, attribute: str) -> list[str]:
    """An attribute that is a list of names, which Keras divides into numbered parts where it is long.

    Raises:
        ValueError: it is not there, or is anything else.
    """
    parts = [attribute] if attribute in item.attrs else [f"{attribute}{i}" for i in range(len(item.attrs))]
    names: list[str] = []
    for part in (part for part in parts if part in item.attrs):
        stored = item.attrs.get_id(part)
        if h5py.check_string_dtype(stored.dtype) is None or stored.get_storage_size() > MAX_NAMES_BYTES:
            raise ValueError(f"its attribute {part!r} is not a list of names as Keras writes it")
        values = np.atleast_1d(item.attrs[part])
        names += [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    if not names:
        raise ValueError(
            f"it has no attribute {attribute!r}, by which layers without a name of their own are told apart"
        )
    return names
