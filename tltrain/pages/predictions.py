"""`predictions.jsonl` of a run -> what its best model said of each example."""

import json
from pathlib import Path

import numpy as np

from tltrain.errors import WorkdirError
from tltrain.training.scores import Predictions


def read_predictions(workdir: Path) -> dict[str, Predictions]:
    """The predictions of a run by split, val first.

    Raises:
        WorkdirError: the file is missing or damaged.
    """
    path = workdir / "predictions.jsonl"
    rows: dict[str, list] = {"val": [], "test": []}
    try:
        with path.open() as file:
            for line in file:
                entry = json.loads(line)
                row = [entry[key] for key in ("id", "label", "probabilities", "loss")]
                rows[entry["split"]].append([*row, entry.get("classes")])
        return {split: _of_rows(found) for split, found in rows.items() if found}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise WorkdirError(
            f"cannot read the predictions; {type(error).__name__}: {error}; in {path}; remove the workdir and run again"
        ) from error


def _of_rows(rows):
    ids, labels, probabilities, losses, classes = zip(*rows, strict=True)
    return Predictions(
        ids,
        np.asarray(labels, int),
        np.asarray(probabilities, float),
        np.asarray(losses, float),
        None if classes[0] is None else np.asarray(classes, int),
    )
