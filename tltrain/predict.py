"""`python -m tltrain.predict --workdir DIR photos/ a.jpg`: what the best model of a finished run says of files."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tltrain import places
from tltrain.data import folder_source
from tltrain.data.files import read_file
from tltrain.data.kinds.kind import Kind
from tltrain.data.split import Split
from tltrain.errors import ConfigError, DataError, WorkdirError
from tltrain.experiment import finished, report
from tltrain.experiment.finished import Finished
from tltrain.runtime import command, console
from tltrain.runtime.process import Process
from tltrain.training.tasks.task import Task

_SHOWN = 50  # rows of the table on the terminal

Answers = dict[str, dict[str, Any]]  # by file, as `Task.answer` gives them


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    parser = command.of_run("predict")
    parser.add_argument("files", nargs="+", type=command.path, help="examples, such as images, or folders of them")
    parser.add_argument("--output", type=command.path, help="write every prediction to this .csv or .jsonl file")
    parser.add_argument("--features", type=command.path, help="write pooled features to this .npz: files, features")
    return command.run(parser, argv, _run)


def _run(arguments: argparse.Namespace, process: Process) -> int:
    for path in (arguments.output, arguments.features):
        if path and not path.absolute().parent.is_dir():
            raise ConfigError(f"no folder for {path}; on the command line; make it, or give another file")
    if arguments.output and arguments.output.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"--output {arguments.output}; on the command line; give a name that ends in .csv or .jsonl")
    run = finished.load(arguments.workdir)
    run.config.features.enabled = "off"  # nothing is stored of images that no run will see again
    run.config.data.max_corrupt = 1.0  # a broken file is named, the others go on
    split = _split(arguments.files, run.kind, run.task)
    features = _empty_features(run, split) if arguments.features else None
    found = finished.evaluate(run, split, process, features)
    answers = {split.ids[i]: run.task.answer(found.logits[i]) for i in np.flatnonzero(found.counted)}
    _show(run, split, answers)
    if arguments.output:
        write = _csv if arguments.output.suffix == ".csv" else _json_lines
        places.write_lines(arguments.output, write(run, answers))
        console.say(f"Every prediction is in {arguments.output}.")
    if features is not None:
        _write_features(arguments.features, split, features, found.counted)
    return 0


def _empty_features(run, split):
    return np.zeros((split.num_examples, run.variables["params"]["head"]["kernel"].shape[0]), np.float32)


def _write_features(path, split, features, counted):
    files = np.asarray(split.ids)[counted]
    try:
        with path.open("wb") as file:
            np.savez(file, files=files, features=features[counted])
    except OSError as error:
        raise WorkdirError(f"cannot write {path}; {error.strerror}; give another --features") from error
    console.say(f"The pooled features are in {path}: files [{len(files)}], features {list(features[counted].shape)}.")


def _split(paths: list[Path], kind: Kind, task: Task) -> Split:
    """The examples at `paths`, files as they are and folders at any depth, each once."""
    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            examples, left_out = folder_source.examples_below(path, kind)
            files |= dict.fromkeys(examples)
            if left_out:
                console.say(f"Left out below {path}: {report.left_out(left_out)}")
        elif path.exists():
            files[path] = None
        else:
            raise DataError(f"no file or folder at {path}; on the command line; check the path")
    if not files:
        raise DataError(f"no {kind.name} below {', '.join(map(str, paths))}; on the command line; check the path")
    found = list(files)
    ids, labels = tuple(map(str, found)), np.zeros((len(found), *task.label.shape), task.label.dtype)
    return Split(f"{len(found)} {kind.name}", ids, labels, lambda i: read_file(found[i]), kind, "")


def _show(run: Finished, split: Split, answers: Answers) -> None:
    rows = [[file, *_words(answer)] for file, answer in list(answers.items())[:_SHOWN]]
    columns = ["file", "class", "second", "third"] if run.task.name == "classification" else ["file", "answer"]
    console.table("", columns[: max(map(len, rows), default=1)], rows)
    if hidden := len(answers) - len(rows):
        console.say(f"{hidden} more are not shown; --output FILE.csv writes all.")
    if lost := len(split.ids) - len(answers):
        console.say(f"{lost} of {len(split.ids)} {run.kind.name} could not be read; they are named above.")


def _words(answer: dict[str, Any]) -> list[str]:
    """The likeliest classes with their probabilities, all that are there, or the number."""
    if "predicted" in answer:
        return [f"{answer['predicted']:.6g}"]
    named = sorted(answer["probabilities"].items(), key=lambda entry: -entry[1])
    shown = named[:3] if "class" in answer else [entry for entry in named if entry[0] in answer["classes"]]
    words = [f"{name} {probability:.4f}" for name, probability in shown]
    return words if "class" in answer else [", ".join(words) or "none"]


def _csv(run: Finished, answers: Answers) -> Iterator[str]:
    """A column for each part of an answer; classes that are there at once are one cell."""

    def line(cells):
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(cells)
        return text.getvalue()

    if run.task.class_names:
        columns = [f"probability of {name}" for name in run.task.class_names]
        yield line(["file", "class" if run.task.name == "classification" else "classes", *columns])
    else:
        yield line(["file", "predicted"])
    for file, answer in answers.items():
        first, *others = answer.values()
        probabilities = [f"{p:.6g}" for named in others for p in named.values()]
        yield line([file, "; ".join(first) if isinstance(first, list) else first, *probabilities])


def _json_lines(run: Finished, answers: Answers) -> Iterator[str]:
    for file, answer in answers.items():
        yield json.dumps({"file": file} | answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
