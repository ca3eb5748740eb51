"""Finished runs side by side, as a page and a table: scores, paired differences, val curves, what configs differ in."""

import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tltrain import config as config_lib
from tltrain.pages import charts, page
from tltrain.pages.predictions import read_predictions
from tltrain.runtime import console
from tltrain.runtime.record import read_json, read_report
from tltrain.training import bootstrap, scores

_COLOURS = 8  # runs drawn in colours of their own: the first, and the most accurate
_GREY = f"c{_COLOURS}"


class Row(NamedTuple):
    """One run.

    `scores` are those of its best model on the `num_examples` of the split that is compared; `difference` is that of
    its accuracy to the first run's on the `num_shared` that both have, paired, None for the first and where none are.
    """

    name: str
    workdir: Path
    scores: dict[str, bootstrap.Estimate]
    difference: bootstrap.Estimate | None
    num_examples: int
    num_shared: int
    seconds: float
    trainable_parameters: int


class _Record(NamedTuple):
    name: str
    workdir: Path
    report: dict[str, Any]
    config: dict[str, Any]
    predictions: dict[str, scores.Predictions]


def write(workdirs: Sequence[Path], output: Path) -> None:
    """Compares the finished runs of `workdirs` with the first: writes the page `output`, prints the table.

    Test is compared where every run has it, else val.

    Raises:
        WorkdirError: one is no finished run, or the page cannot be written.
    """
    records = [_read(workdir, name) for workdir, name in zip(workdirs, _names(workdirs), strict=True)]
    split = "test" if all("test" in record.predictions for record in records) else "val"
    rows = [_row(record, records[0], split) for record in records]
    colours = _colours(rows)
    text = page.fill(
        "runs.html",
        split=split,
        rows=[row._asdict() | {"link": _link(row.workdir, output), "colour": colours[row.name]} for row in rows],
        curves=[
            charts.lines(title, _curves(records, colours, key, scale), "epoch, of all phases", parts={}, legend=False)
            for key, title, scale in (("accuracy", "Val accuracy, %", 100), ("loss", "Val loss, nats", 1))
        ],
        differing=_differing(records),
        num_bins=scores.NUM_BINS,
    )
    page.write_text(output, text)
    _show(rows, split)


def _read(workdir, name):
    report, config = read_report(workdir), read_json(workdir / "config.json")
    return _Record(name, workdir, report, config_lib.flatten(config), read_predictions(workdir))


def _names(workdirs):
    """The path of each below what all have in common."""
    paths = [workdir.resolve() for workdir in workdirs]
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).as_posix() for path in paths]


def _link(workdir, output):
    path = os.path.relpath((workdir / "report.html").resolve(), output.resolve().parent)
    return urllib.parse.quote(os.fsencode(Path(path).as_posix()))


def _row(record: _Record, first: _Record, split) -> Row:
    report, found = record.report, record.predictions[split]
    difference, num_shared = None, len(found.ids)
    if record is not first:
        difference, num_shared = paired_difference(found, first.predictions[split])
    return Row(
        record.name,
        record.workdir,
        scores.with_intervals(found),
        difference,
        len(found.ids),
        num_shared,
        sum(report["seconds"].values()),
        report["phases"][report["chosen"]["phase"]]["trainable_parameters"],
    )


def paired_difference(found: scores.Predictions, first: scores.Predictions) -> tuple[bootstrap.Estimate | None, int]:
    """Accuracy of `found` minus that of `first`, by bootstrap over the examples that both have; and how many these are.

    Two runs err on much the same examples, so the interval is narrower than those of the two accuracies make one think.
    """
    earlier = dict(zip(first.ids, first.correct.tolist(), strict=True))
    both = [(now, earlier[i]) for i, now in zip(found.ids, found.correct.tolist(), strict=True) if i in earlier]
    if not both:
        return None, 0
    now, before = np.asarray(both, float).T
    return bootstrap.estimates([bootstrap.mean(now - before)], len(both))[0], len(both)


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """The class of each run's colour: grey for all but the first and the most accurate."""
    first, *others = rows
    others.sort(key=lambda row: -row.scores["accuracy"].value)
    own = {row.name: f"c{i}" for i, row in enumerate([first, *others[: _COLOURS - 1]])}
    return {row.name: own.get(row.name, _GREY) for row in rows}


def _curves(records, colours, key, scale):
    """A line a run, the phases one after the other; those in grey first, so that the others lie above them."""
    made = []
    for record in records:
        history = [entry for phase in record.report["phases"].values() for entry in phase["history"]]
        points = [(i, scale * entry["val"][key]) for i, entry in enumerate(history, 1)]
        chosen = record.report["chosen"]
        at = next(i for i, e in enumerate(history, 1) if (e["phase"], e["epoch"]) == (chosen["phase"], chosen["epoch"]))
        colour = colours[record.name]
        best = [] if colour == _GREY else [(at, scale * chosen["val"][key])]
        made.append(charts.Series(record.name, colour, [points], best))
    return sorted(made, key=lambda series: series.colour != _GREY)


def _differing(records):
    """The keys whose values are not the same in all runs, with these values, in the order of the runs."""
    keys = dict.fromkeys(key for record in records for key in record.config)
    shown = {key: [repr(r.config[key]) if key in r.config else "-" for r in records] for key in keys}
    return {key: values for key, values in shown.items() if len(set(values)) > 1}


def _show(rows, split):
    cells = []
    for row in rows:
        found, difference = row.scores, row.difference
        interval = f"[{_points(found['accuracy'].low)}, {_points(found['accuracy'].high)}]"
        change = ["", ""]
        if difference is not None:
            change = [f"{100 * difference.value:+.2f}", f"[{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"]
        loss, ece = f"{found['loss'].value:.4f}", _points(found["ece"].value)
        cost = [page.format_by(row.seconds, "seconds"), page.format_by(row.trainable_parameters, "count")]
        cells.append([row.name, _points(found["accuracy"].value), interval, *change, loss, ece, *cost])
    columns = ["run", "accuracy", "95 %", "difference", "95 %", "loss", "ECE", "seconds", "trainable"]
    console.table(f"Best models on {split}, accuracy and ECE in percent", columns, cells)


def _points(share):
    return f"{100 * share:.2f}"
