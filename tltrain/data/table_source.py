"""A table of examples, or a folder of tables, -> splits."""

import collections
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from tltrain.data import content, table_labels, table_reader
from tltrain.data.expressions import HELD_OUT, ROLES, parse
from tltrain.data.expressions import resolved as _resolved
from tltrain.data.files import read_file
from tltrain.data.kinds.kind import Kind
from tltrain.data.names import Blobs, Strings
from tltrain.data.split import Data, Split
from tltrain.data.table_reader import SUFFIXES, Table
from tltrain.errors import DataError, foreign_errors

_SHOWN = 10  # splits that a line names

LeftOut = dict[str, tuple[str, ...]]  # names by reason


def resolved(root: Path, config: ConfigDict) -> tuple[str, ...]:
    """`config.splits`, or where they are the default and the rows are divided already, those there are.

    Raises:
        DataError: there is no such table, or no such column of splits.
    """
    if config.splits != HELD_OUT:
        return config.splits
    if _is_folder(root):
        there = set(_tables_in(root))
    elif config.split:
        table = table_reader.read(root, {config.split: "data.split"})
        there = set(_split_names(table, config.split))
    else:
        there = {"train"}
    return _resolved(config.splits, {ROLES.get(name.lower(), name) for name in there})


def load(root: Path, config: ConfigDict, kind: Kind, task: str) -> Data:
    """The splits that `config.splits`, of the group `data`, names of the table `root`; class names from the first.

    `root` is a file, whose rows are the split `train`, or divided by the column `config.split`; or a folder of files,
    each a split by its name. Rows stay in their order; which of them a percentage takes follows from their contents
    alone, and equal ones are never parted. `task` is that of the config.

    Raises:
        DataError: a table, a column or a split is not there, or a row is no example or has no label; it is named.
    """
    columns = kind.columns(config)
    wanted = columns | {config.label: "data.label"}
    parsed = [parse(expression, root) for expression in config.splits]
    bases, tables, left_out = _tables(root, [name for name, _, _ in parsed], wanted, config)
    folder = root if _is_folder(root) else root.parent
    rows = {base: _Rows.of(table, tuple(columns), kind, folder) for base, table in tables.items()}
    task, found = table_labels.read(list(tables.values()), config.label, task)
    labels = dict(zip(tables, found, strict=True))
    class_names = table_labels.class_names(task, labels[bases[0]])
    targets = {base: table_labels.array(task, labels[base], class_names, tables[base]) for base in tables}
    strata = {base: found.tolist() if task == "classification" else [0] * len(found) for base, found in targets.items()}
    ranked = {base: _ranked(rows[base].keys, strata[base]) for base in tables}
    splits = []
    for expression, base, (_, start, stop) in zip(config.splits, bases, parsed, strict=True):
        chosen = _slice(ranked[base], start, stop)
        splits.append(_split(expression, rows[base], targets[base], chosen, kind))
    roles = dict(zip(("train", "val", "test"), splits, strict=False))
    return Data(roles, class_names, task, left_out)


def examples(path: Path, config: ConfigDict, kind: Kind) -> list[tuple[str, bytes | Path]]:
    """Every row of one table as an example or the path of its file, with its name; no label is asked for.

    `config` is the group `data`. Raises DataError as `load`.
    """
    columns = kind.columns(config)
    table = table_reader.read(path, columns)
    rows = _Rows.of(table, tuple(columns), kind, path.parent)
    return [(table.where(i), example) for i, example in enumerate(rows.examples)]


class _Rows(NamedTuple):
    """The examples of a table: bytes, or paths of files, with the sha256 of each.

    `keys` are what a percentage goes by, the sha256 of an example or of the name of its file; `files` has the sha256 of
    the file of each, where they are in files of their own, by name.
    """

    table: Table
    examples: Sequence[bytes | Path]
    keys: Sequence[bytes]
    sha256: Sequence[bytes]
    files: Sequence[tuple[str, bytes]]

    @classmethod
    def of(cls, table: Table, columns: Sequence[str], kind: Kind, folder: Path) -> "_Rows":
        """Those of a table in `folder`; raises DataError where a row is none."""
        cells = list(zip(*(table.columns[name] for name in columns), strict=True))
        examples = [_example(table, i, columns, texts, kind, folder) for i, texts in enumerate(cells)]
        paths = [example for example in examples if isinstance(example, Path)]
        if not paths:
            keys = [hashlib.sha256(example).digest() for example in examples if isinstance(example, bytes)]
            return cls(table, examples, keys, keys, ())
        names = ["\t".join(texts) for texts in cells]
        keys = [hashlib.sha256(name.encode()).digest() for name in names]
        sha256 = [what.sha256 for what in content.of_files(paths, str(folder.absolute()))]
        return cls(table, examples, keys, sha256, list(zip(names, sha256, strict=True)))


def _example(table, i, columns, texts, kind, folder):
    for name, text in zip(columns, texts, strict=True):
        if text is None:
            raise DataError(f"{table.where(i)} has no {name!r}; its cell is empty; add it, or remove the row")
        if not isinstance(text, str):
            raise DataError(
                f"{name!r} of {table.where(i)} is {text!r:.60}, no string; in a table; write it as a string"
            )
    try:
        return kind.of_cells(texts, folder)
    except UnicodeEncodeError as error:  # half of a pair of UTF-16, as JSON can escape it
        raise DataError(f"{table.where(i)} is not UTF-8; {error.reason}; save it as UTF-8") from error
    except ValueError as error:
        raise DataError(f"{columns[0]!r} of {table.where(i)} is {texts[0]!r:.60}; {error}; correct it") from error


def _tables(
    root: Path, names: Sequence[str], wanted: Mapping[str, str], config: ConfigDict
) -> tuple[list[str], dict[str, Table], LeftOut]:
    """What the tables are called that `names` mean, these tables, and what lies beside them."""
    if _is_folder(root):
        if config.split:
            raise DataError(
                f"data.split = {config.split!r}, and {root} is a folder, whose tables are the splits; in the config; "
                "set data.split = '', or name one table by data.source"
            )
        there = _tables_in(root)
        bases = [_named(name, there, root) for name in names]
        left_out = {
            "tables beside the splits": tuple(path.name for stem, path in there.items() if stem not in bases),
            "files beside the tables": tuple(path.name for path in _visible(root) if path not in there.values()),
        }
        tables = {base: table_reader.read(there[base], wanted) for base in dict.fromkeys(bases)}
        return bases, tables, {reason: found for reason, found in left_out.items() if found}
    if not config.split:
        bases = [_named(name, ["train"], root) for name in names]
        return bases, {"train": table_reader.read(root, wanted)}, {}
    table = table_reader.read(root, {**wanted, config.split: "data.split"})
    rows = collections.defaultdict(list)
    for i, name in enumerate(_split_names(table, config.split)):
        rows[name].append(i)
    bases = [_named(name, sorted(rows), root) for name in names]
    beside = sorted(i for name, found in rows.items() if name not in bases for i in found)
    left_out = {"rows of other splits": tuple(map(table.where, beside))} if beside else {}
    return bases, {base: table.take(rows[base]) for base in dict.fromkeys(bases)}, left_out


def _is_folder(root):
    with foreign_errors(DataError, f"cannot read {root}", "give another data.source"):
        return root.is_dir()


def _visible(root):
    with foreign_errors(DataError, f"cannot read {root}", "give data.source a folder that can be read"):
        return sorted(path for path in root.iterdir() if not path.name.startswith("."))


def _tables_in(root: Path) -> dict[str, Path]:
    """The tables in a folder by their names without suffix."""
    tables: dict[str, Path] = {}
    for path in _visible(root):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            if path.stem in tables:
                raise DataError(f"{tables[path.stem]} and {path} are both a split {path.stem!r}; rename or move one")
            tables[path.stem] = path
    if not tables:
        raise DataError(
            f"no table in the folder {root}; named by data.source; put files {', '.join(SUFFIXES)} there, or write "
            "'folder:' for one with a sub-folder a class"
        )
    return tables


def _split_names(table, column):
    return ["" if cell is None else str(cell) for cell in table.columns[column]]


def _named(name: str, there: Iterable[str], root: Path) -> str:
    """Which of the splits `there` is called `name`: as it is, or in other words, "dev" for "val"."""
    there = list(there)
    role = ROLES.get(name.lower(), name)
    same = [name] if name in there else [one for one in there if ROLES.get(one.lower(), one) == role]
    if len(same) == 1:
        return same[0]
    raise DataError(
        f"{'no' if not same else 'more than one'} split {name!r}; {root} has {', '.join(there[:_SHOWN])}"
        f"{', ...' * (len(there) > _SHOWN)}; change data.splits, or name a column of splits by data.split"
    )


def _ranked(keys: Sequence[bytes], strata: Sequence[int]) -> list[list[list[int]]]:
    """Of each stratum its rows in the order of their `keys`, those of one key together, in the lowest of theirs."""
    equal: dict[bytes, list[int]] = collections.defaultdict(list)
    for row, key in enumerate(keys):
        equal[key].append(row)
    groups: dict[int, list[list[int]]] = collections.defaultdict(list)
    for key in sorted(equal):
        rows = equal[key]
        groups[min(strata[row] for row in rows) if len(rows) > 1 else strata[rows[0]]].append(rows)
    return list(groups.values())


def _slice(ranked: Sequence[Sequence[Sequence[int]]], start: int, stop: int) -> list[int]:
    """Rows whose rank lies in `[start, stop)` percent, in their order; equal ones go by the first of their ranks."""
    chosen: list[int] = []
    for groups in ranked:
        total, rank = sum(map(len, groups)), 0
        first, last = round(total * start / 100), round(total * stop / 100)
        for group in groups:
            if first <= rank < last:
                chosen += group
            rank += len(group)
    return sorted(chosen)


def _split(expression: str, rows: _Rows, labels: np.ndarray, chosen: Sequence[int], kind: Kind) -> Split:
    table, examples = rows.table.take(chosen), Blobs(os.fsencode(rows.examples[i]) for i in chosen)
    are_files = bool(rows.files)  # `read` keeps nothing else of the table

    def read(i: int) -> bytes:
        return read_file(Path(os.fsdecode(examples[i]))) if are_files else examples[i]

    # with the numbers of rows, since what a page keeps of an example goes by these and is looked up by the fingerprint
    digest = hashlib.sha256(b"".join(rows.sha256[i] for i in chosen))
    digest.update(np.asarray(table.rows, np.int64).tobytes())
    files = {table.name: table.sha256} | dict(rows.files[i] for i in chosen if rows.files)
    ids = Strings(map(table.where, range(len(chosen))))
    return Split(expression, ids, labels[list(chosen)], read, kind, digest.hexdigest(), lambda: files)
