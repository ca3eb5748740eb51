"""The wanted columns of a table: a file `.csv`, `.tsv`, `.jsonl` or `.parquet`."""

import codecs
import csv
import difflib
import hashlib
import io
import json
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from tltrain.data.files import read_file
from tltrain.data.names import Blobs
from tltrain.errors import DataError, foreign_errors
from tltrain.runtime.process import free_memory

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_BLOCK = 1 << 20  # bytes that are checked at a time
_CHUNK = 1 << 12  # cells that are there in two forms at a time
_NAMED = 20  # columns that a line names
_TIMES = 4  # bytes of memory that a byte of a table takes while it is read
_UTF8 = "save it as UTF-8"


class Cells:
    """Those of a column in order: strings alone in few bytes beside their own, as `Blobs`, others as they are."""

    def __init__(self) -> None:
        self._of: Blobs | list[Any] = Blobs()

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, i: SupportsIndex, /) -> Any:
        return self._of[i].decode() if isinstance(self._of, Blobs) else self._of[i]

    def __iter__(self) -> Iterator[Any]:
        return map(bytes.decode, self._of) if isinstance(self._of, Blobs) else iter(self._of)

    def append(self, cell: Any) -> None:
        """Adds one."""
        if isinstance(self._of, Blobs):
            try:
                self._of.append(cell.encode())
                return
            except (AttributeError, UnicodeEncodeError):  # no string, or one with half a pair of UTF-16
                self._of = list(self)
        self._of.append(cell)


Columns = dict[str, Cells]


class Table(NamedTuple):
    """Some rows of the table in the file `name`, whose bytes have the `sha256`.

    `rows`, int64 `[N]`, are the numbers of the records as a spreadsheet shows them: the header of a .csv or .tsv is 1,
    other formats count from 1. The cells of `columns` are strings, or what JSON and Parquet have: numbers, booleans,
    lists, None.
    """

    name: str
    sha256: bytes
    rows: np.ndarray
    columns: Columns

    def where(self, i: int) -> str:
        """The row at the position `i`: "reviews.csv:17"."""
        return f"{self.name}:{self.rows[i]}"

    def take(self, positions: Sequence[int]) -> "Table":
        """The rows at `positions` alone."""
        columns = {name: _cells(map(cells.__getitem__, positions)) for name, cells in self.columns.items()}
        return self._replace(rows=self.rows[list(positions)], columns=columns)

    def only(self, *names: str) -> "Table":
        """The columns of these names alone."""
        return self._replace(columns={name: self.columns[name] for name in names})


def _cells(cells):
    made = Cells()
    for cell in cells:
        made.append(cell)
    return made


def read(path: Path, wanted: Mapping[str, str]) -> Table:
    """The columns `wanted` of the file at `path`, each with the key of a config that names it.

    Raises:
        DataError: it is not there, does not fit the memory, is in another format, damaged or not in UTF-8, it has no
            rows, or it lacks a column.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path.name} is no table; at {path}; write it as {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    with foreign_errors(DataError, f"cannot read the table {path}", "give another data.source"):
        if not path.exists():
            raise DataError(f"no table at {path}; named by data.source; give the path of a file or of a folder of them")
        if path.is_file():
            _check_memory(path, path.stat().st_size)
        content = read_file(path, sys.maxsize)
    if path.suffix.lower() == ".parquet":
        rows, columns = _parquet(content, path, wanted)
    elif path.suffix.lower() == ".jsonl":
        rows, columns = _jsonl(_text(content, path), path, wanted)
    else:
        rows, columns = _csv(_text(content, path), path, wanted, "\t" if path.suffix.lower() == ".tsv" else ",")
    if not len(rows):
        raise DataError(f"{path.name} has no rows; at {path}; give a table with a row an example")
    return Table(path.name, hashlib.sha256(content).digest(), np.asarray(rows, np.int64), columns)


def _check_memory(path, num_bytes):
    needed, free = _TIMES * num_bytes / 2**30, free_memory() / 2**30
    if needed > free:
        raise DataError(
            f"{path.name} takes about {needed:.1f} GiB of memory, {free:.1f} are free; at {path}; take a smaller one, "
            "or write a data set of TFDS, which is read example by example"
        )


def _text(content, path):
    """A file of the text, which is there as its bytes alone."""
    begin = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    file = io.BytesIO(content)
    file.seek(begin)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while block := file.read(_BLOCK):
            decoder.decode(block)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        _refuse(content[begin:], path)
    file.seek(begin)
    return file


def _refuse(content, path):
    """Raises of text that is not UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}, {error.start} bytes from the "
            f"start; at {path}; {_UTF8}"
        ) from error


def _check_columns(wanted, there, where, path):
    """Raises where a column is not there, or more than once."""
    for name, key in wanted.items():
        if not there.count(name):
            near = difflib.get_close_matches(name, [column for column in there if column], n=1, cutoff=0.6)
            named = ", ".join(map(str, there[:_NAMED])) + (", ..." if len(there) > _NAMED else "")
            raise DataError(
                f"{where} has no column {name!r}, which {key} names; at {path}, where its columns are "
                f"{named or 'none'}; " + (f"did you mean {near[0]!r}? " if near else "") + f"set {key}"
            )
        if there.count(name) > 1:
            raise DataError(f"{where} has {there.count(name)} columns {name!r}; at {path}; rename or remove one")


def _csv(text, path, wanted, delimiter):
    csv.field_size_limit(sys.maxsize)  # a cell of more than 128 KiB is a long text, no mistake
    records = csv.reader(io.TextIOWrapper(text, "utf-8", newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    rows, columns = array("q"), {name: Cells() for name in wanted}
    number = 0
    while True:
        number += 1
        with foreign_errors(
            DataError, f"{path.name}:{number} is no record", f"at {path}; write its quotes as CSV does"
        ):
            cells = next(records, None)
        if cells is None:
            break
        if not cells:  # an empty line, which a spreadsheet counts
            continue
        if header is None:
            _check_columns(wanted, cells, path.name, path)
            header, at = cells, [(columns[name], cells.index(name)) for name in wanted]
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{path.name}:{number} has {len(cells)} cells, its header {len(header)}; at {path}; put cells that "
                "hold a delimiter, a quote or a line end in quotes"
            )
        rows.append(number)
        for column, i in at:
            column.append(cells[i])
    return rows, columns


def _jsonl(text, path, wanted):
    rows, columns = array("q"), {name: Cells() for name in wanted}
    for number, encoded in enumerate(text, 1):
        line = encoded.removesuffix(b"\n").decode()
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        with foreign_errors(DataError, f"{where} is no JSON", f"at {path}; write one object a line"):
            record = json.loads(line)
        if not isinstance(record, dict):
            raise DataError(f"{where} is no JSON object; at {path}; write one object a line, columns as its keys")
        if not wanted.keys() <= record.keys():
            _check_columns(wanted, list(record), where, path)
        rows.append(number)
        for name, column in columns.items():
            column.append(record[name])
    return rows, columns


def _parquet(content, path, wanted):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with foreign_errors(DataError, f"cannot read the table {path}", "it is no sound Parquet file; write it again"):
        file = pq.ParquetFile(pa.BufferReader(content))
        _check_columns(wanted, file.schema_arrow.names, path.name, path)
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        _check_memory(path, sum(groups))
        columns = {name: _cells(_of_arrow(file, name, path)) for name in wanted}
    return range(1, file.metadata.num_rows + 1), columns


def _of_arrow(file, name, path):
    first = 1
    for batch in file.iter_batches(_CHUNK, columns=[name]):
        yield from _part(batch.column(name), first, path)
        first += len(batch)


def _part(column, first, path):
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # which says in which cell's bytes, not in which cell
        for number, cell in enumerate(column, first):
            with foreign_errors(DataError, f"{path.name}:{number} is not UTF-8", f"at {path}; {_UTF8}"):
                cell.as_py()
        raise
