"""The record of a run: the content of `report.json`, and the lines and tables on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tltrain.data.split import Data
from tltrain.models import freeze
from tltrain.runtime import console
from tltrain.training.setup import Setup
from tltrain.training.tasks.task import LABELS


def number(value: float | None) -> str:
    """A metric for a table; a dash where there is none."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Seconds for a table: to the tenth, below one to the hundredth."""
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2f}"


def data_line(data: Data) -> str:
    """Sizes of the splits and names of the classes; in a second line what was left out."""
    counts = ", ".join(f"{split.num_examples} {name}" for name, split in data.splits.items())
    shown = ", ".join(data.class_names[:10]) + (", ..." if len(data.class_names) > 10 else "")
    labels = f"of {len(data.class_names)} classes ({shown})" if data.class_names else "with a number each"
    line = f"Data: {counts} {data.kind.name} {labels}{', several at once' if data.task == 'multi_label' else ''}"
    line += f"; the sub-folders {', '.join(data.sub_folders)} are splits" if data.sub_folders else ""
    return line + (f"\nLeft out: {left_out(data.left_out)}; tltrain.doctor names them" if data.left_out else "")


def left_out(found: Mapping[str, Sequence[str]], named: int = 1) -> str:
    """What lies beside the examples and is none, by reason, `named` of each by name."""
    parts = []
    for reason, names in found.items():
        shown = ", ".join(names[:named]) + (", ..." if len(names) > named else "")
        parts.append(f"{console.counted(len(names), reason)} ({shown})")
    return "; ".join(parts)


def phase_line(name: str, phase: ConfigDict, step: int, num_steps: int) -> str:
    """What a phase is going to do, or to go on with."""
    begin = f"resuming after step {step} of {num_steps}" if step else f"{num_steps} steps"
    penalty = f"penalty {phase.weight_decay:g}" if phase.weight_decay else "its penalty chosen on a part of train"
    solved = {
        "ridge": f"ridge regression, {penalty}",
        "logreg": f"logistic regression by L-BFGS, {penalty}",
        "knn": f"votes of the {phase.neighbors} nearest training examples",
    }
    if phase.optimizer in solved:
        return f"\n{name}: {solved[phase.optimizer]}"
    return f"\n{name}: {phase.epochs} epochs, {begin}, {phase.optimizer} at {phase.learning_rate:g}"


def parameters_by_stage(params: Any, plan: freeze.Plan) -> list[dict[str, Any]]:
    """Numbers of `trainable` and `frozen` parameters, in forward order.

    Neighbours on one side of the cut share a row, from the stage `first` to the stage `last`; the head has its own.
    """
    parts = freeze.split(params, plan)
    rows: list[dict[str, Any]] = []
    for i, stage in enumerate(plan.stages):
        trainable, frozen = (num_parameters(part["backbone"][stage]) for part in parts)
        if rows and i != plan.cut:
            rows[-1]["last"] = stage
            rows[-1]["trainable"] += trainable
            rows[-1]["frozen"] += frozen
        else:
            rows.append({"first": stage, "last": stage, "trainable": trainable, "frozen": frozen})
    trainable, frozen = (num_parameters(part["head"]) for part in parts)
    return [*rows, {"first": "head", "last": "head", "trainable": trainable, "frozen": frozen}]


def show_parameters(params: Any, plan: freeze.Plan) -> None:
    """Prints trainable and frozen parameters by stage."""
    rows = parameters_by_stage(params, plan)
    totals = {kind: sum(row[kind] for row in rows) for kind in ("trainable", "frozen")}
    cells = []
    for row in [*rows, {"first": "all", "last": "all", **totals}]:
        name = row["first"] if row["first"] == row["last"] else f"{row['first']} ... {row['last']}"
        cells.append([name, *(f"{row[kind]:,}" if row[kind] else "" for kind in totals)])
    console.table("", ["parameters", "trainable", "frozen"], cells)


def num_parameters(tree: Any) -> int:
    """Number of scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def figures(scores: Mapping[str, float | None], sep: str = " ") -> str:
    """Scores in a line, by name."""
    return sep.join(f"{LABELS.get(name, name)} {number(value)}" for name, value in scores.items())


def progress_note(summary: dict[str, float], rate: str) -> str:
    """Scores and speed so far, beside the bar."""
    return f"{figures(summary)} {rate}"


def epoch_line(entry: dict[str, Any], epochs: int, rate: str) -> str:
    """One epoch in one line."""
    where = f"{entry['phase']} {entry['epoch']}/{epochs}"
    return f"{where}: {figures(entry['train'])} | val {figures(entry['val'])} | {rate}"


def phase_result(
    config: ConfigDict,
    record: dict[str, Any],
    best_step: int,
    num_examples: int,
    params: Any,
    plan: freeze.Plan,
) -> dict[str, Any]:
    """A finished phase: its history, the epoch that was best on val, the last one, its speed and its size."""
    history, step_rate = record["history"], record["step_examples_per_second"]
    trainable, frozen = freeze.split(params, plan)
    return {
        "epochs": config.epochs,
        "stopped_early": len(history) < config.epochs,
        "freeze_until": config.freeze_until,
        "trainable_parameters": num_parameters(trainable),
        "frozen_parameters": num_parameters(frozen),
        "parameters_by_stage": parameters_by_stage(params, plan),
        "best": next(entry for entry in history if entry["step"] == best_step),
        "last": history[-1],
        "history": history,
        "solved": record["solved"],
        "seconds": round(record["seconds"], 3),
        "share_waiting_for_input": round(record["seconds_waiting"] / record["seconds"], 4),
        "examples_per_second": round(num_examples * len(history) / record["seconds"], 1),
        "step_examples_per_second": step_rate and round(step_rate, 1),
    }


def of_run(
    setup: Setup,
    phases: dict[str, Any],
    chosen: str,
    origin: dict[str, Any],
    measured: dict[str, dict[str, Any]],
    num_corrupt: dict[str, int],
    examples_per_second: float | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        setup: of the run.
        phases: `phase_result` of each, by name.
        chosen: the phase whose best model is the run's.
        origin: of the initial weights.
        measured: what `evaluation.in_detail` says of that model.
        num_corrupt: unreadable examples by split.
        examples_per_second: of its frozen stages, see `Inputs.examples_per_second`.
        seconds: by part of the run.
    """
    data = setup.data
    counts = {name: split.class_counts(len(data.class_names)) for name, split in data.splits.items()}
    return {
        "task": {"name": setup.task.name, "metric": setup.task.metric, "unit": setup.task.unit},
        "kind": {"name": data.kind.name, "rate": data.kind.rate, "shown_as": data.kind.shown_as},
        "class_names": list(data.class_names),
        "fingerprints": {name: split.fingerprint for name, split in data.splits.items()},
        "num_examples": {name: split.num_examples for name, split in data.splits.items()},
        "class_counts": {n: dict(zip(data.class_names, map(int, c), strict=True)) for n, c in counts.items()},
        "weights": origin,
        "phases": phases,
        "chosen": {"phase": chosen, **phases[chosen]["best"], "val": measured["val"]},
        **({"test": measured["test"]} if "test" in measured else {}),
        "num_corrupt": num_corrupt,
        "features": {"examples_per_second": None if examples_per_second is None else round(examples_per_second, 1)},
        "seconds": {part: round(spent, 2) for part, spent in seconds.items()},
    }


def waits_for(phase: dict[str, Any]) -> str:
    """What limits the speed of a finished phase, with its share of the seconds of the training steps."""
    share = phase["share_waiting_for_input"]
    return f"input {share:.0%}" if share > 0.5 else f"compute {1 - share:.0%}"


def speeds(phase: dict[str, Any], rate: str) -> str:
    """How fast input and step of a finished phase could be; that of the input is what it gave, where steps waited."""
    more = "" if phase["share_waiting_for_input"] > 0.5 else " or more"
    given, taken = phase["examples_per_second"], phase["step_examples_per_second"]
    return f"input could give {given:.0f} {rate}{more}, a step could take {taken:.0f}"


def show(report: dict[str, Any], workdir: Path) -> None:
    """Prints the result of a run: one row a phase, then the chosen model and where everything lies."""
    metric, rows = report["task"]["metric"], []
    shown = list(next(iter(report["phases"].values()))["best"]["val"])
    for name, phase in report["phases"].items():
        best, last = phase["best"], phase["last"]
        row = [name, f"{best['epoch']}/{phase['epochs']}", *(number(best["val"][key]) for key in shown)]
        row += [number(last["val"][metric]), f"{phase['examples_per_second']:.0f}", f"{phase['seconds']:.1f}"]
        rows.append(row)
    columns = ["phase", "best", *(LABELS.get(key, key) for key in shown), f"last {LABELS.get(metric, metric)}"]
    columns += [report["kind"]["rate"], "seconds"]
    console.say("")
    console.table(f"Result on {report['num_examples']['val']} val {report['kind']['name']}", columns, rows)
    for name, phase in report["phases"].items():
        if (done := len(phase["history"])) < phase["epochs"]:
            best = phase["best"]["epoch"]
            console.say(f"{name} stopped early, after epoch {done} of {phase['epochs']}: none since {best} was better.")
    chosen = report["chosen"]
    baseline = chosen["val"]["baseline"]
    console.say(
        f"Best on val: {chosen['phase']}, epoch {chosen['epoch']}, {LABELS.get(metric, metric)} "
        f"{number(chosen['val'][metric])}; always answering '{baseline['answer']}' gives {number(baseline[metric])}."
    )
    if "test" in report:
        test = {key: report["test"][key] for key in (metric, "loss")}
        console.say(f"On test, which saw no choice: {figures(test, ', ')}.")
    skipped = sum(report["num_corrupt"].values())
    if skipped:
        console.say(f"{skipped} unreadable {report['kind']['name']} were skipped.")
    waits = ", ".join(f"{name} {waits_for(phase)}" for name, phase in report["phases"].items())
    console.say(f"Steps wait for: {waits} of their time.")
    for name, phase in report["phases"].items():
        if phase.get("step_examples_per_second"):  # a head that is solved for takes no steps
            console.say(f"{name}: {speeds(phase, report['kind']['rate'])}.")
    console.say("Seconds: " + ", ".join(f"{part} {seconds:.1f}" for part, seconds in report["seconds"].items()))
    events = ", tensorboard/" if (workdir / "tensorboard").is_dir() else ""
    console.say(f"The record of the run is in {workdir}: report.json, metrics.jsonl, checkpoints/{events}.")
    if (workdir / "report.html").exists():  # where writing it failed, the run says so
        console.say(f"To look at: {workdir / 'report.html'}")
