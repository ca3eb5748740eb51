"""`predictions.jsonl` of a run -> what its best model said of each example."""

import json
from pathlib import Path
from typing import Any

from tltrain.errors import WorkdirError
from tltrain.training.tasks.choose import TASKS


def read_predictions(workdir: Path, task: str) -> dict[str, Any]:
    """The predictions of a run of a task by split, val first, as `Task.answers` gives them.

    Raises:
        WorkdirError: the file is missing or damaged.
    """
    path = workdir / "predictions.jsonl"
    lines: dict[str, list[dict[str, Any]]] = {"val": [], "test": []}
    try:
        with path.open() as file:
            for line in file:
                entry = json.loads(line)
                lines[entry["split"]].append(entry)
        return {split: TASKS[task].answers(found) for split, found in lines.items() if found}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise WorkdirError(
            f"cannot read the predictions; {type(error).__name__}: {error}; in {path}; remove the workdir and run again"
        ) from error
