"""`python -m tltrain.predict --workdir DIR photos/ a.jpg`: what the best model of a finished run says of images."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tltrain import places
from tltrain.data import folder_source
from tltrain.data.files import read_file
from tltrain.data.preprocess import FORMATS
from tltrain.data.split import Split
from tltrain.errors import ConfigError, DataError, WorkdirError
from tltrain.experiment import finished, report
from tltrain.runtime import command, console
from tltrain.training import metrics

_SHOWN = 50  # rows of the table on the terminal


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    parser = command.of_run("predict")
    parser.add_argument("images", nargs="+", type=command.path, help=f"{', '.join(FORMATS)}, or folders of them")
    parser.add_argument("--output", type=command.path, help="write every prediction to this .csv or .jsonl file")
    parser.add_argument("--features", type=command.path, help="write pooled features to this .npz: files, features")
    return command.run(parser, argv, _run)


def _run(arguments: argparse.Namespace, stop: Callable[[], bool]) -> int:
    for path in (arguments.output, arguments.features):
        if path and not path.absolute().parent.is_dir():
            raise ConfigError(f"no folder for {path}; on the command line; make it, or give another file")
    if arguments.output and arguments.output.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"--output {arguments.output}; on the command line; give a name that ends in .csv or .jsonl")
    run = finished.load(arguments.workdir)
    run.config.features.enabled = "off"  # nothing is stored of images that no run will see again
    run.config.data.max_corrupt = 1.0  # a broken file is named, the others go on
    split = _split(arguments.images)
    features = _empty_features(run, split) if arguments.features else None
    found = finished.evaluate(run, split, stop, features)
    probabilities = metrics.probabilities(found.logits)
    _show(run, split, found.counted, probabilities)
    if arguments.output:
        write = _csv if arguments.output.suffix == ".csv" else _json_lines
        places.write_lines(arguments.output, write(run, split, found.counted, probabilities))
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


def _split(paths: list[Path]) -> Split:
    """The images at `paths`, files as they are and folders at any depth, each once."""
    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            images, left_out = folder_source.images_below(path)
            files |= dict.fromkeys(images)
            if left_out:
                console.say(f"Left out below {path}: {report.left_out(left_out)}")
        elif path.exists():
            files[path] = None
        else:
            raise DataError(f"no file or folder at {path}; on the command line; check the path")
    if not files:
        raise DataError(f"no image below {', '.join(map(str, paths))}; on the command line; check the path")
    found = list(files)
    ids, labels = tuple(map(str, found)), np.zeros(len(found), np.int32)
    return Split(f"{len(found)} images", ids, labels, lambda i: read_file(found[i]), "")


def _show(run, split, counted, probabilities):
    rows = []
    for i in np.flatnonzero(counted)[:_SHOWN]:
        best = np.argsort(-probabilities[i], kind="stable")[:3]
        shown = [f"{run.class_names[c]} {probabilities[i, c]:.4f}" for c in best]
        rows.append([split.ids[i], *shown])
    columns = ["file", "class", "second", "third"][: len(rows[0])]
    console.table("", columns, rows)
    hidden = int(counted.sum()) - len(rows)
    if hidden:
        console.say(f"{hidden} more are not shown; --output FILE.csv writes all.")
    if not counted.all():
        console.say(f"{int((~counted).sum())} of {len(counted)} images could not be read; they are named above.")


def _csv(run, split, counted, probabilities) -> Iterator[str]:
    def line(cells):
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(cells)
        return text.getvalue()

    yield line(["file", "class", *(f"probability of {name}" for name in run.class_names)])
    for i in np.flatnonzero(counted):
        yield line([split.ids[i], run.class_names[probabilities[i].argmax()], *(f"{p:.6g}" for p in probabilities[i])])


def _json_lines(run, split, counted, probabilities) -> Iterator[str]:
    for i in np.flatnonzero(counted):
        row = {name: float(f"{p:.6g}") for name, p in zip(run.class_names, probabilities[i], strict=True)}
        yield json.dumps(
            {"file": split.ids[i], "class": run.class_names[probabilities[i].argmax()], "probabilities": row}
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
