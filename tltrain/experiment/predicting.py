"""What the best model of a finished run says of files: as tables, CSV and JSON lines."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tltrain.data import folder_source
from tltrain.data.files import read_file
from tltrain.data.split import Split
from tltrain.errors import DataError, WorkdirError
from tltrain.experiment import finished, report
from tltrain.experiment.finished import Finished
from tltrain.runtime import console
from tltrain.runtime.process import Process

_SHOWN = 50  # rows of the table on the terminal


class Predicted(NamedTuple):
    """`logits` float32 `[N, D]` of the files that could be read; `num_files` counts those that could not too.

    `features` are the pooled ones, float32 `[N, C]`, where these are wanted.
    """

    run: Finished
    files: tuple[str, ...]
    logits: np.ndarray
    features: np.ndarray | None
    num_files: int

    def answers(self, most: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each file with what `Task.answer` says of it, of the first `most`."""
        for file, logits in zip(self.files[:most], self.logits[:most], strict=True):
            yield file, self.run.task.answer(logits)


def predict(run: Finished, paths: Sequence[Path], process: Process, with_features: bool = False) -> Predicted:
    """What `run` says of the examples at `paths`, files as they are and folders at any depth, each once.

    Raises:
        DataError: there is nothing at a path, or no example at all.
        TerminatedError: `process.stop()` became true.
    """
    run.config.features.enabled = "off"  # nothing is stored of examples that no run will see again
    run.config.data.max_corrupt = 1.0  # a broken file is named, the others go on
    split = _split(run, paths)
    width = run.variables["params"]["head"]["kernel"].shape[0]
    features = np.zeros((split.num_examples, width), np.float32) if with_features else None
    found = finished.evaluate(run, split, process, features)
    files = tuple(split.ids[i] for i in np.flatnonzero(found.counted))
    return Predicted(run, files, found.logits[found.counted], _rows(features, found.counted), len(split.ids))


def _rows(features, counted):
    return None if features is None else features[counted]


def _split(run, paths) -> Split:
    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            examples, left_out = folder_source.examples_below(path, run.kind)
            files |= dict.fromkeys(examples)
            if left_out:
                console.say(f"Left out below {path}: {report.left_out(left_out)}")
        elif path.exists():
            files[path] = None
        else:
            raise DataError(f"no file or folder at {path}; on the command line; check the path")
    if not files:
        raise DataError(f"no {run.kind.name} below {', '.join(map(str, paths))}; on the command line; check the path")
    found, label = list(files), run.task.label
    ids, labels = tuple(map(str, found)), np.zeros((len(found), *label.shape), label.dtype)
    return Split(f"{len(found)} {run.kind.name}", ids, labels, lambda i: read_file(found[i]), run.kind, "")


def show(found: Predicted) -> None:
    """Prints the first of them as a table."""
    rows = [[file, *_words(answer)] for file, answer in found.answers(_SHOWN)]
    columns = ["file", "class", "second", "third"] if found.run.task.name == "classification" else ["file", "answer"]
    console.table("", columns[: max(map(len, rows), default=1)], rows)
    if hidden := len(found.files) - len(rows):
        console.say(f"{hidden} more are not shown; --output FILE.csv writes all.")
    if lost := found.num_files - len(found.files):
        console.say(f"{lost} of {found.num_files} {found.run.kind.name} could not be read; they are named above.")


def _words(answer: dict[str, Any]) -> list[str]:
    """The likeliest classes with their probabilities, all that are there, or the number."""
    if "predicted" in answer:
        return [f"{answer['predicted']:.6g}"]
    named = sorted(answer["probabilities"].items(), key=lambda entry: -entry[1])
    if "class" in answer:
        return [f"{name} {probability:.4f}" for name, probability in named[:3]]
    there = [f"{name} {probability:.4f}" for name, probability in named if name in answer["classes"]]
    return [", ".join(there) or "none"]


def csv_lines(found: Predicted) -> Iterator[str]:
    """A column for each part of an answer; classes that are there at once are a JSON list."""

    def line(cells):
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(cells)
        return text.getvalue()

    names = [f"probability of {name}" for name in found.run.class_names]
    first = {"classification": "class", "multi_label": "classes", "regression": "predicted"}[found.run.task.name]
    yield line(["file", first, *names])
    for file, answer in found.answers():
        said, *probabilities = answer.values()
        cells = [f"{p:.6g}" for named in probabilities for p in named.values()]
        yield line([file, json.dumps(said) if isinstance(said, list) else said, *cells])


def json_lines(found: Predicted) -> Iterator[str]:
    """A line a file: its name and its answer."""
    for file, answer in found.answers():
        yield json.dumps({"file": file} | answer)


def write_features(found: Predicted, path: Path) -> None:
    """Writes the pooled features to a `.npz`: `files` `[N]` and `features` `[N, C]`; raises WorkdirError."""
    assert found.features is not None, "they were wanted"
    try:
        with path.open("wb") as file:
            np.savez(file, files=np.asarray(found.files), features=found.features)
    except OSError as error:
        raise WorkdirError(f"cannot write {path}; {error.strerror}; give another --features") from error
    shape = list(found.features.shape)
    console.say(f"The pooled features are in {path}: files [{len(found.files)}], features {shape}.")
