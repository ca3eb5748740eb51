"""`predictions.jsonl` of a run -> what its best model said of each example."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from tltrain.data.names import Strings
from tltrain.errors import WorkdirError
from tltrain.training.tasks.choose import TASKS

_CHUNK = 4096  # lines that are held as they stand at a time


def read_predictions(workdir: Path, task: str) -> dict[str, Any]:
    """The predictions of a run of a task by split, val first, as `Task.answers` gives them.

    Raises:
        WorkdirError: the file is missing or damaged.
    """
    path = workdir / "predictions.jsonl"
    parts: dict[str, _Parts] = {"val": _Parts(), "test": _Parts()}
    try:
        with path.open() as file:
            for split, entries in itertools.groupby(map(json.loads, file), lambda entry: entry["split"]):
                while some := list(itertools.islice(entries, _CHUNK)):
                    parts[split].add(TASKS[task].answers(some))
        return {split: found.joined() for split, found in parts.items() if found.columns}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise WorkdirError(
            f"cannot read the predictions; {type(error).__name__}: {error}; in {path}; remove the workdir and run again"
        ) from error


class _Parts:
    """Values as of `Task.answers` of one kind, to be one: ids, and pieces of each of the other columns."""

    def __init__(self) -> None:
        self.ids = Strings()
        self._kind: Any = None
        self.columns: list[list[Any]] = []

    def add(self, found: Any) -> None:
        self.ids.extend(found.ids)
        self.columns, self._kind = self.columns or [[] for _ in found[1:]], type(found)
        for pieces, piece in zip(self.columns, found[1:], strict=True):
            pieces.append(piece)

    def joined(self) -> Any:
        """All of them; a column at a time is there twice."""
        columns = []
        for pieces in self.columns:
            columns.append(None if pieces[0] is None else np.concatenate(pieces))
            pieces.clear()
        return self._kind(self.ids, *columns)
