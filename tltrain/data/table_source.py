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
from tltrain.data.expressions import HELD_OUT, ROLES, Ranked, parse
from tltrain.data.expressions import resolved as _resolved
from tltrain.data.files import read_file
from tltrain.data.kinds.kind import Kind
from tltrain.data.names import Below, Blobs, Strings
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
    tables = {base: table.only(config.label) for base, table in tables.items()}  # the examples are there
    task, found = table_labels.read(list(tables.values()), config.label, task)
    labels = dict(zip(tables, found, strict=True))
    class_names = table_labels.class_names(task, labels[bases[0]])
    targets = {base: table_labels.array(task, labels[base], class_names, tables[base]) for base in tables}
    ranked = {}
    for base, array in targets.items():
        strata = array if task == "classification" else np.zeros(len(array), np.int32)
        ranked[base] = Ranked.of(rows[base].keys, strata)
    splits = []
    for expression, base, (_, start, stop) in zip(config.splits, bases, parsed, strict=True):
        chosen = ranked[base].slice(start, stop)
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
    return [(table.where(i), rows.example(i)) for i in range(len(table.rows))]


class _Rows(NamedTuple):
    """The examples of a table: bytes, or paths of files, with the `sha256` of each, `[N]` of 32 bytes.

    `keys` are what a percentage goes by, the sha256 of an example or of the name of its file; `files` are these names,
    where examples are in files of their own, else None.
    """

    table: Table
    examples: Blobs
    keys: np.ndarray
    sha256: np.ndarray
    files: Strings | None

    @classmethod
    def of(cls, table: Table, columns: Sequence[str], kind: Kind, folder: Path) -> "_Rows":
        """Those of a table in `folder`; raises DataError where a row is none."""
        examples, are_files = Blobs(), False

        def cells():
            return zip(*(table.columns[name] for name in columns), strict=True)

        for i, texts in enumerate(cells()):
            example = _example(table, i, columns, texts, kind, folder)
            are_files |= isinstance(example, Path)
            examples.append(os.fsencode(example))
        if not are_files:
            keys = _digests(examples)
            return cls(table.only(), examples, keys, keys, None)
        names = Strings(map("\t".join, cells()))
        keys = _digests(name.encode() for name in names)
        paths = Below(Path(), Strings(map(os.fsdecode, examples)))
        return cls(table.only(), examples, keys, content.of_files(paths, str(folder.absolute())).sha256, names)

    def example(self, i: int) -> bytes | Path:
        """That of a row."""
        return self.examples[i] if self.files is None else Path(os.fsdecode(self.examples[i]))


def _digests(blobs):
    made = bytearray()
    for one in blobs:
        made += hashlib.sha256(one).digest()
    return np.frombuffer(made, "V32")


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


def _split(expression: str, rows: _Rows, labels: np.ndarray, chosen: np.ndarray, kind: Kind) -> Split:
    table, examples, sha256 = rows.table, Blobs(map(rows.examples.__getitem__, chosen)), rows.sha256[chosen]
    names = None if rows.files is None else Strings(map(rows.files.__getitem__, chosen))
    ids, own = Strings(map(table.where, chosen)), {table.name: table.sha256}  # `read` keeps nothing else of the table
    # with the numbers of rows, since what a page keeps of an example goes by these and is looked up by the fingerprint
    digest = hashlib.sha256(sha256.tobytes())
    digest.update(table.rows[chosen].tobytes())
    of_files = sha256[: 0 if names is None else None].copy()

    def read(i: int) -> bytes:
        return examples[i] if names is None else read_file(Path(os.fsdecode(examples[i])))

    def files() -> dict[str, bytes]:
        return own if names is None else own | dict(zip(names, of_files.tolist(), strict=True))

    return Split(expression, ids, labels[chosen], read, kind, digest.hexdigest(), files)
