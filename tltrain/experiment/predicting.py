"""What the best model of a finished run says of files: as tables, CSV and JSON lines."""

import collections
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tltrain.data import folder_source, table_reader, table_source
from tltrain.data.files import read_file
from tltrain.data.split import Split
from tltrain.errors import DataError, WorkdirError, foreign_errors
from tltrain.experiment import finished, report
from tltrain.experiment.finished import Finished
from tltrain.models import zoo
from tltrain.runtime import console
from tltrain.runtime.process import Process

STDIN = "-"  # the name of standard input on a command line
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
    """What `run` says of the examples at `paths`, files as they are, folders at any depth, rows of tables, each once.

    Of texts the path `-` is the lines of standard input, the two of a pair with a tab between.

    Raises:
        DataError: there is nothing at a path, a row is no example, or there is none at all.
        TerminatedError: `process.stop()` became true.
    """
    run.config.features.enabled = "off"  # nothing is stored of examples that no run will see again
    run.config.data.max_corrupt = 1.0  # a broken file is named, the others go on
    split = _split(run, paths)
    shape = (split.num_examples, zoo.num_features(run.model))
    features = np.zeros(shape, np.float32) if with_features else None
    found = finished.evaluate(run, split, process, features)
    files = tuple(split.ids[i] for i in np.flatnonzero(found.counted))
    return Predicted(run, files, found.logits[found.counted], _rows(features, found.counted), len(split.ids))


def _rows(features, counted):
    return None if features is None else features[counted]


def _split(run, paths) -> Split:
    found: dict[str, bytes | Path] = {}
    named = collections.Counter(path.name for path in set(paths))
    for path in paths:
        found |= _examples(run, path, named[path.name] == 1)
    if not found:
        raise DataError(f"no {run.kind.name} below {', '.join(map(str, paths))}; on the command line; check the path")
    examples, label = list(found.values()), run.task.label
    labels = np.zeros((len(examples), *label.shape), label.dtype)

    def read(i: int) -> bytes:
        example = examples[i]
        return example if isinstance(example, bytes) else read_file(example)

    return Split(f"{len(examples)} {run.kind.name}", tuple(found), labels, read, run.kind, "")


def _examples(run, path, is_alone) -> dict[str, bytes | Path]:
    """Those at `path` by their names; rows are called by the name of their table where this `is_alone`, or its path."""
    if str(path) == STDIN and run.kind.shown_as == "text/plain":
        return _lines(run)
    if path.is_dir():
        examples, left_out = folder_source.examples_below(path, run.kind)
        if left_out:
            console.say(f"Left out below {path}: {report.left_out(left_out)}")
        return {str(example): example for example in examples}
    if not path.exists():
        raise DataError(f"no file or folder at {path}; on the command line; check the path")
    if path.suffix.lower() in table_reader.SUFFIXES:
        rows = table_source.examples(path, run.config.data, run.kind)
        return {where if is_alone else str(path.parent / where): example for where, example in rows}
    return {str(path): path}


def _lines(run):
    count, found = len(run.kind.columns(run.config.data)), {}
    for number, line in enumerate(sys.stdin.buffer, 1):
        with foreign_errors(DataError, f"line {number} of standard input is not UTF-8", "save it as UTF-8"):
            cells = line.decode().rstrip("\r\n").split("\t") if count > 1 else [line.decode().rstrip("\r\n")]
        if len(cells) != count:
            raise DataError(
                f"line {number} of standard input has {len(cells)} parts; the run takes {count}; put a tab between them"
            )
        found[f"line {number}"] = run.kind.of_cells(cells, Path())
    return found


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
        csv.writer(text).writerow(cells)  # puts cells in quotes that hold a part of its line end
        return text.getvalue().removesuffix("\r\n")

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
