"""Finished runs side by side, as a page and a table: scores, paired differences, val curves, what configs differ in."""

import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tltrain import config as config_lib
from tltrain.errors import WorkdirError
from tltrain.pages import charts, page
from tltrain.pages.predictions import read_predictions
from tltrain.runtime import console
from tltrain.runtime.record import read_json, read_report
from tltrain.training import bootstrap, scores
from tltrain.training.tasks.choose import TASKS
from tltrain.training.tasks.task import Task

_COLOURS = 8  # runs drawn in colours of their own: the first, and the most accurate
_GREY = f"c{_COLOURS}"


class Row(NamedTuple):
    """One run.

    `scores` are those of its best model on the `num_examples` of the split that is compared; `difference` is that of
    its metric to the first run's on the `num_shared` that both have, paired, None for the first and where none are.
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
    predictions: dict[str, Any]  # by split, see `Task.answers`


def write(workdirs: Sequence[Path], output: Path) -> None:
    """Compares the finished runs of `workdirs` with the first: writes the page `output`, prints the table.

    Test is compared where every run has it, else val.

    Raises:
        WorkdirError: one is no finished run, they are of several tasks, or the page cannot be written.
    """
    records = [_read(workdir, name) for workdir, name in zip(workdirs, _names(workdirs), strict=True)]
    if len(tasks := {record.report["task"]["name"] for record in records}) > 1:
        raise WorkdirError(f"runs of several tasks cannot be compared: {', '.join(sorted(tasks))}; name those of one")
    task = TASKS[tasks.pop()]
    split = "test" if all("test" in record.predictions for record in records) else "val"
    rows = [_row(record, records[0], split, task) for record in records]
    colours = _colours(rows, task)
    text = page.fill(
        "runs.html",
        split=split,
        kind=records[0].report["kind"]["name"],
        rows=[row._asdict() | {"link": _link(row.workdir, output), "colour": colours[row.name]} for row in rows],
        metric={"name": task.metric, "label": page.label_of(task.metric, task), "format": page.format_of(task.metric)},
        points="points" if page.scale_of(task.metric) == 100 else "signed",
        others=_others(rows, task),
        curves=[
            charts.lines(
                page.title_of(key, task, "val"),
                _curves(records, colours, key, page.scale_of(key)),
                "epoch, of all phases",
                parts={},
                legend=False,
            )
            for key in (task.metric, "loss")
        ],
        differing=_differing(records),
        num_bins=scores.NUM_BINS,
    )
    page.write_text(output, text)
    _show(rows, split, task)


def _read(workdir, name):
    report, config = read_report(workdir), read_json(workdir / "config.json")
    return _Record(name, workdir, report, config_lib.flatten(config), read_predictions(workdir, report["task"]["name"]))


def _names(workdirs):
    """The path of each below what all have in common."""
    paths = [workdir.resolve() for workdir in workdirs]
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).as_posix() for path in paths]


def _link(workdir, output):
    path = os.path.relpath((workdir / "report.html").resolve(), output.resolve().parent)
    return urllib.parse.quote(os.fsencode(Path(path).as_posix()))


def _row(record: _Record, first: _Record, split, task) -> Row:
    report, found = record.report, record.predictions[split]
    difference, num_shared = None, len(found.ids)
    if record is not first:
        difference, num_shared = paired_difference(found, first.predictions[split], task)
    return Row(
        record.name,
        record.workdir,
        task.with_intervals(found),
        difference,
        len(found.ids),
        num_shared,
        sum(report["seconds"].values()),
        report["phases"][report["chosen"]["phase"]]["trainable_parameters"],
    )


def paired_difference(found: Any, first: Any, task: type[Task]) -> tuple[bootstrap.Estimate | None, int]:
    """The metric of `found` minus that of `first`, by bootstrap over the examples both have; and how many these are.

    Two runs err on much the same examples, so the interval is narrower than those of the two make one think.
    """
    earlier = dict(zip(first.ids, task.each(first).tolist(), strict=True))
    both = [(now, earlier[i]) for i, now in zip(found.ids, task.each(found).tolist(), strict=True) if i in earlier]
    if not both:
        return None, 0
    now, before = np.asarray(both, float).T
    return bootstrap.estimates([bootstrap.mean(now - before)], len(both))[0], len(both)


def _others(rows, task):
    """Label, format and name of the scores that every run has beside the metric."""
    names = [name for name in rows[0].scores if name != task.metric and all(name in row.scores for row in rows)]
    return [{"label": page.label_of(name, task), "format": page.format_of(name), "name": name} for name in names]


def _colours(rows: Sequence[Row], task: type[Task]) -> dict[str, str]:
    """The class of each run's colour: grey for all but the first and the best."""
    first, *others = rows
    others.sort(key=lambda row: row.scores[task.metric].value, reverse=task.larger_is_better)
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


def _show(rows, split, task):
    others, kind = _others(rows, task), page.format_of(task.metric)
    signed = "points" if kind == "percent" else "signed"
    cells = []
    for row in rows:
        value, low, high = (_bare(v, kind) for v in row.scores[task.metric])
        change = ["", ""]
        if row.difference is not None:
            value_of, low_of, high_of = (page.format_by(v, signed) for v in row.difference)
            change = [value_of, f"[{low_of}, {high_of}]"]
        more = [_bare(row.scores[one["name"]].value, one["format"]) for one in others]
        cost = [page.format_by(row.seconds, "seconds"), page.format_by(row.trainable_parameters, "count")]
        cells.append([row.name, value, f"[{low}, {high}]", *change, *more, *cost])
    label, names = page.label_of(task.metric, task), [one["label"] for one in others]
    columns = ["run", label, "95 %", "difference", "95 %", *names, "seconds", "trainable"]
    console.table(f"Best models on {split}{', shares in percent' if kind == 'percent' else ''}", columns, cells)


def _bare(value, kind):
    return page.format_by(value, "bare_percent" if kind == "percent" else kind)
