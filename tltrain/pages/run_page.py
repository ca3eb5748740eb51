"""The record of a run -> `report.html`: learning curves, metrics with intervals, mistakes, config, environment."""

import base64
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tltrain import config as config_lib
from tltrain.data.split import Data
from tltrain.errors import WorkdirError
from tltrain.pages import charts, page, splits, thumbnails
from tltrain.pages.predictions import read_predictions
from tltrain.runtime.record import read_json, read_report
from tltrain.training import scores
from tltrain.training.tasks.choose import TASKS

_MOST_FIGURES = 4  # scores at the top of the page
_LIKELY_MISTAKES = 64  # examples of highest loss of which what is shown is made beside those


def write(workdir: Path, read_data: Callable[[], Data]) -> Path:
    """Writes `report.html` of the finished run in `workdir`, and returns its path.

    `read_data` gives the data of the run; called where what is shown of an example is not in the cache: it may be slow.

    Raises:
        WorkdirError: there is no finished run, or the page cannot be written.
    """
    path = workdir / "report.html"
    try:
        text = render(workdir, read_data)
    except KeyError as error:
        raise WorkdirError(
            f"the record has no {error}; {workdir / 'report.json'} is of another version of tltrain; run it again"
        ) from error
    page.write_text(path, text)
    return path


def end_run(workdir: Path, read_data: Callable[[], Data]) -> None:
    """`write`, as the last act of a run, whose record stands already.

    Raises:
        WorkdirError: whatever went wrong; it says that the record is complete.
    """
    try:
        write(workdir, read_data)
    except Exception as error:  # who reads of it must know that nothing of the run is lost
        raise WorkdirError(
            f"the run is finished, its page is not; {type(error).__name__}: {error}; in {workdir}; report.json is "
            f"complete; python -m tltrain.report {shlex.quote(str(workdir))} writes the page again"
        ) from error


def render(workdir: Path, read_data: Callable[[], Data]) -> str:
    """The text of the page; arguments as of `write`."""
    report = read_report(workdir)
    config, environment = (read_json(workdir / name) for name in ("config.json", "environment.json"))
    task = TASKS[report["task"]["name"]]
    predictions = read_predictions(workdir, task.name)
    estimates = {split: task.with_intervals(found) for split, found in predictions.items()}
    worst = {split: splits.mistakes(found) for split, found in predictions.items()}
    shown = {split: _shown(split, found, worst[split], report, read_data) for split, found in predictions.items()}
    seconds = report["seconds"]
    return page.fill(
        "run.html",
        name=page.name_of(workdir),
        kind=report["kind"]["name"],
        rate=report["kind"]["rate"],
        source=config["data"]["source"].replace(":", "/").rpartition("/")[2],
        backbone=config["model"]["backbone"],
        class_names=report["class_names"],
        chosen=report["chosen"],
        baseline=_baseline(report, task.metric),
        figures=_figures(report, estimates),
        curves=_curves(report["phases"], task),
        best_by=page.label_of(task.ranked_by(config["checkpoint"]["best"]), task),
        metrics=[
            {"label": page.label_of(name, task), "format": page.format_of(name), "estimates": found}
            for name, found in ((name, [found[name] for found in estimates.values()]) for name in estimates["val"])
        ],
        num_bins=scores.NUM_BINS,
        splits=[
            {"name": name, "count": len(found.ids), "num_corrupt": report["num_corrupt"][name]}
            | splits.BY_TASK[task.name](found, worst[name], shown[name], report["class_names"], estimates[name])
            for name, found in predictions.items()
        ],
        phases=report["phases"],
        parts=[{"name": part, "seconds": s, "share": s / sum(seconds.values())} for part, s in seconds.items()],
        total_seconds=sum(seconds.values()),
        counts=report["class_counts"],
        counted=_counted(report),
        corrupt=report["num_corrupt"],
        environment=_environment(report, environment),
        packages=environment["packages"],
        **_config(config),
    )


def _shown(split, found, worst, report, read_data):
    wanted = [found.ids[i] for i in worst]
    likely = [found.ids[i] for i in np.argsort(-found.losses, kind="stable")[:_LIKELY_MISTAKES]]
    found = thumbnails.of(report["fingerprints"][split], wanted, likely, lambda: read_data().splits[split])
    return {example: _as_media(content, report["kind"]["shown_as"]) for example, content in found.items()}


def _as_media(content, media):
    """What a page shows of an example: a `picture`, as a URL, or a `text`; neither where it is gone."""
    shown: dict[str, str | None] = {"picture": None, "text": None}
    if content is None:
        return shown
    if media == "text/plain":
        return shown | {"text": content.decode(errors="replace")}
    return shown | {"picture": f"data:{media};base64,{base64.b64encode(content).decode()}"}


def _counted(report):
    """Classes in their order, or where they are very many those with the fewest training examples, fewest first."""
    names, of_train = report["class_names"], report["class_counts"]["train"]
    return (
        names
        if len(names) <= scores.MOST_SHOWN
        else sorted(names, key=lambda name: of_train[name])[: scores.MOST_SHOWN]
    )


def _figures(report, estimates):
    split, found = list(estimates.items())[-1]
    made, task = [], TASKS[report["task"]["name"]]
    for name, estimate in list(found.items())[:_MOST_FIGURES]:
        value, low, high = (page.format_by(v, page.format_of(name)) for v in estimate)
        made.append({"label": f"{split} {page.label_of(name, task)}", "value": value, "note": f"{low} to {high}"})
    phase = report["phases"][report["chosen"]["phase"]]
    total = phase["trainable_parameters"] + phase["frozen_parameters"]
    trainable = page.format_by(phase["trainable_parameters"], "count")
    made.append({"label": "trained parameters", "value": trainable, "note": f"of {page.format_by(total, 'count')}"})
    seconds = sum(report["seconds"].values())
    note = f"{page.format_by(report['num_examples']['train'], 'count')} training {report['kind']['name']}"
    return [*made, {"label": "seconds", "value": page.format_by(seconds, "seconds"), "note": note}]


def _baseline(report, metric):
    found = report["chosen"]["val"]["baseline"]
    return {"answer": found["answer"], "score": page.format_by(found[metric], page.format_of(metric))}


def _curves(phases, task):
    """Charts of loss and metric, the epochs of the second phase after those of the first."""
    begins, first = {}, 0
    for name, phase in phases.items():
        begins[name] = first
        first += len(phase["history"])
    return [
        charts.lines(page.title_of(key, task), _curve(phases, begins, key, page.scale_of(key)), "epoch", parts=begins)
        for key in ("loss", task.metric)
    ]


def _curve(phases, begins, key, scale):
    made = []
    for split, colour in (("train", "c8"), ("val", "c0")):
        segments = [
            [(begins[name] + entry["epoch"], _scaled(entry[split][key], scale)) for entry in phase["history"]]
            for name, phase in phases.items()
        ]
        best = [(begins[n] + p["best"]["epoch"], scale * p["best"]["val"][key]) for n, p in phases.items()]
        made.append(charts.Series(split, colour, segments, best if split == "val" else []))
    return made


def _scaled(value, scale):
    return float("nan") if value is None else scale * value


def _config(stored):
    """Every key in groups of one first name, those that differ from the default marked."""
    standard = config_lib.flatten(json.loads(config_lib.to_json(config_lib.default())))
    groups: dict[str, list] = {}
    for name, value in config_lib.flatten(stored).items():
        default = standard.get(name)
        entry = {"name": name, "value": repr(value), "default": repr(default), "changed": value != default}
        groups.setdefault(name.partition(".")[0] if "." in name else "", []).append(entry)
    num_changed = sum(entry["changed"] for group in groups.values() for entry in group)
    return {"groups": list(groups.values()), "num_changed": num_changed}


def _environment(report, stored):
    weights = report["weights"]
    sha256 = [("sha256 of the weights", weights["sha256"])] if "sha256" in weights else []
    facts = [("weights", weights["source"]), *sha256, ("command", " ".join(stored["command"]))]
    commit = f"{stored['commit']}{', with changes' if stored['dirty'] else ''}"
    facts += [("commit", commit), ("devices", ", ".join(stored["devices"])), ("cores", stored["cores"])]
    facts += [("platform", stored["platform"]), ("python", stored["python"])]
    return facts
