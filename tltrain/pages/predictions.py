"""`predictions.jsonl` of a run -> what its best model said of each example."""

import itertools
import json
from collections.abc import Sequence
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
    parts: dict[str, list[Any]] = {"val": [], "test": []}
    try:
        with path.open() as file:
            for split, entries in itertools.groupby(map(json.loads, file), lambda entry: entry["split"]):
                while some := list(itertools.islice(entries, _CHUNK)):
                    found = TASKS[task].answers(some)
                    parts[split].append(found._replace(ids=Strings(found.ids)))
        return {split: _joined(found) for split, found in parts.items() if found}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise WorkdirError(
            f"cannot read the predictions; {type(error).__name__}: {error}; in {path}; remove the workdir and run again"
        ) from error


def _joined(parts: Sequence[Any]) -> Any:
    """Values as of `Task.answers` of one kind as one."""
    ids = Strings(itertools.chain.from_iterable(part.ids for part in parts))
    columns = zip(*(part[1:] for part in parts), strict=True)
    return type(parts[0])(ids, *(None if column[0] is None else np.concatenate(column) for column in columns))
