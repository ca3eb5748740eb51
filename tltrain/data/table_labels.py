"""What the cells of a column of labels are: names of classes, several such names, or numbers."""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tltrain.data.table_reader import Table
from tltrain.errors import DataError
from tltrain.rules import LARGEST

_INTEGER = re.compile(r"-?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|nan|inf(inity)?)", re.ASCII | re.IGNORECASE)

Where = Callable[[], str]
Labels = list[Any]  # a float each, the name of a class, or a tuple of such names


def read(tables: Sequence[Table], column: str, task: str) -> tuple[str, list[Labels]]:
    """The task of the labels, and those of each of `tables`, which have them in `column`; `task` is that of a config.

    Numbers are classes where all of them are integers and `task` is not "regression"; so a .csv, which knows strings
    alone, means what the other formats do.

    Raises:
        DataError: a label is missing or none of these; the line names its row.
    """

    def each():
        """Every cell, and what names its row."""
        for table in tables:
            for i, cell in enumerate(table.columns[column]):
                yield functools.partial(table.where, i), cell

    for where, cell in each():
        if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):
            raise DataError(f"{where()} has no label; its {column!r} is empty; add it, or remove the row")
    if task == "regression":
        found: Labels = [_number(where, cell) for where, cell in each()]
    elif any(isinstance(cell, list) for _, cell in each()):
        task, several = "multi_label", [(where, _names(where, cell)) for where, cell in each()]
        spelt = _spelling((where, name) for where, names in several for name in names)
        found = [tuple(spelt[name] for name in names) for _, names in several]
    else:
        task = "classification"
        spelt = _spelling((where, _name(where, cell)) for where, cell in each())
        found = [spelt[_name(where, cell)] for where, cell in each()]
    at = np.cumsum([0, *(len(table.rows) for table in tables)])
    return task, [found[start:stop] for start, stop in itertools.pairwise(at)]


def class_names(task: str, labels: Labels) -> tuple[str, ...]:
    """Of the labels of train: integers in the order of numbers, else in that of strings; () where they are numbers."""
    if task == "regression":
        return ()
    names = set(labels) if task == "classification" else {name for several in labels for name in several}
    if all(map(_INTEGER.fullmatch, names)):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def array(task: str, labels: Labels, class_names: tuple[str, ...], table: Table) -> np.ndarray:
    """`labels` of the rows of `table` as `Data` has them; raises DataError where one is none of `class_names`."""
    if task == "regression":
        return np.asarray(labels, np.float32)
    index = {name: i for i, name in enumerate(class_names)}
    for i, names in enumerate((label,) for label in labels) if task == "classification" else enumerate(labels):
        if extra := [name for name in names if name not in index]:
            raise DataError(
                f"{table.where(i)} has the class {extra[0]!r}, which train has not; train has "
                f"{', '.join(class_names[:10])}{', ...' * (len(class_names) > 10)}; add it to train or remove it"
            )
    if task == "classification":
        return np.asarray([index[name] for name in labels], np.int32)
    found = np.zeros((len(labels), len(class_names)), bool)
    for row, names in zip(found, labels, strict=True):
        row[[index[name] for name in names]] = True
    return found


def _number(where: Where, cell: Any) -> float:
    if isinstance(cell, str) and _NUMBER.fullmatch(cell.strip()):
        cell = float(cell)
    if isinstance(cell, bool) or not isinstance(cell, int | float) or not abs(cell) <= LARGEST:
        raise DataError(f"label {cell!r:.60} of {where()} is no finite number; with task = 'regression'; correct it")
    return float(cell)


def _names(where: Where, cell: Any) -> tuple[str, ...]:
    if not isinstance(cell, list):
        raise DataError(
            f"label {cell!r:.60} of {where()} is no list, others are; several labels; write [...] in every row"
        )
    return tuple(_name(where, name) for name in cell)


def _name(where: Where, cell: Any) -> str:
    """A label as a .csv would have it."""
    if not isinstance(cell, str | int | float) or (isinstance(cell, str) and not cell.strip()):
        raise DataError(
            f"label {cell!r:.60} of {where()} is no string, number or list of these; of a table; correct it"
        )
    return str(cell).strip()


def _spelling(named: Iterable[tuple[Where, str]]) -> Mapping[str, str]:
    """The name of the class of each label; where all are numbers "1.0", as tables with gaps have it, is "1"."""
    first: dict[str, Where] = {}
    for where, name in named:
        first.setdefault(name, where)
    if not all(map(_NUMBER.fullmatch, first)):
        return {name: name for name in first}
    for name, where in first.items():
        if not float(name).is_integer():
            raise DataError(
                f"label {name} of {where()} is no integer; numbers that are classes are integers; set task = "
                "'regression' where labels are numbers, or write names of classes"
            )
    return {name: name if _INTEGER.fullmatch(name) else str(int(float(name))) for name in first}
