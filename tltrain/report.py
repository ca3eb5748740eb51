"""The record of a run: the content of `report.json`, and the lines and tables on the terminal."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tltrain import console, freeze
from tltrain.data.split import Data


def number(value: float | None) -> str:
    """A metric for a table; a dash where there is none."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Seconds for a table: to the tenth, below one to the hundredth."""
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2f}"


def data_line(data: Data) -> str:
    """Sizes of the splits and names of the classes."""
    counts = ", ".join(f"{split.num_examples} {name}" for name, split in data.splits.items())
    shown = ", ".join(data.class_names[:10]) + (", ..." if len(data.class_names) > 10 else "")
    return f"Data: {counts} images of {len(data.class_names)} classes ({shown})"


def phase_line(name: str, phase: ConfigDict, step: int, num_steps: int) -> str:
    """What a phase is going to do, or to go on with."""
    begin = f"resuming after step {step} of {num_steps}" if step else f"{num_steps} steps"
    if phase.optimizer == "ridge":
        return f"\n{name}: ridge regression, penalty {phase.weight_decay:g}"
    return f"\n{name}: {phase.epochs} epochs, {begin}, {phase.optimizer} at {phase.learning_rate:g}"


def show_parameters(params: Any, plan: freeze.Plan) -> None:
    """Prints trainable and frozen parameters by stage; neighbours on one side of the cut share a row."""
    parts = freeze.split(params, plan.labels)
    rows: list[list[Any]] = []
    for i, stage in enumerate(plan.stages):
        counts = [num_parameters(part["backbone"][stage]) for part in parts]
        if rows and i != plan.cut:
            rows[-1][1:] = [stage, *(a + b for a, b in zip(rows[-1][2:], counts, strict=True))]
        else:
            rows.append([stage, stage, *counts])
    for name, trees in (("head", [part["head"] for part in parts]), ("all", parts)):
        rows.append([name, name, *map(num_parameters, trees)])
    cells = [[a if a == b else f"{a} ... {b}", *(f"{n:,}" if n else "" for n in counts)] for a, b, *counts in rows]
    console.table("", ["parameters", "trainable", "frozen"], cells)


def num_parameters(tree: Any) -> int:
    """Number of scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def progress_note(summary: dict[str, float], rate: float) -> str:
    """Loss, accuracy and speed so far, beside the bar."""
    return f"loss {number(summary['loss'])} accuracy {number(summary['accuracy'])} {rate:.0f} img/s"


def epoch_line(entry: dict[str, Any], epochs: int, rate: float) -> str:
    """One epoch in one line."""
    train, val = entry["train"], entry["val"]
    auc = f" AUC {number(val['auc'])}" if "auc" in val else ""
    return (
        f"{entry['phase']} {entry['epoch']}/{epochs}: loss {number(train['loss'])} accuracy {number(train['accuracy'])}"
        f" | val loss {number(val['loss'])} accuracy {number(val['accuracy'])}{auc} | {rate:.0f} img/s"
    )


def phase_result(
    config: ConfigDict, record: dict[str, Any], best_step: int, num_images: int, params: Any, plan: freeze.Plan
) -> dict[str, Any]:
    """A finished phase: its history, the epoch that was best on val, the last one, its speed and its size."""
    history = record["history"]
    trainable, frozen = freeze.split(params, plan.labels)
    return {
        "epochs": config.epochs,
        "stopped_early": len(history) < config.epochs,
        "freeze_until": config.freeze_until,
        "trainable_parameters": num_parameters(trainable),
        "frozen_parameters": num_parameters(frozen),
        "best": next(entry for entry in history if entry["step"] == best_step),
        "last": history[-1],
        "history": history,
        "seconds": round(record["seconds"], 3),
        "share_waiting_for_input": round(record["seconds_waiting"] / record["seconds"], 4),
        "images_per_second": round(num_images * len(history) / record["seconds"], 1),
    }


def of_run(
    data: Data,
    phases: dict[str, Any],
    chosen: str,
    origin: dict[str, Any],
    test: dict[str, Any] | None,
    num_corrupt: dict[str, int],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        data: of the run.
        phases: `phase_result` of each, by name.
        chosen: the phase whose best model is the run's.
        origin: of the initial weights.
        test: the scores of that model on test, None where there is no such split.
        num_corrupt: unreadable images by split.
        seconds: by part of the run.
    """
    counts = {name: split.class_counts(len(data.class_names)) for name, split in data.splits.items()}
    return {
        "class_names": list(data.class_names),
        "num_examples": {name: split.num_examples for name, split in data.splits.items()},
        "class_counts": {n: dict(zip(data.class_names, map(int, c), strict=True)) for n, c in counts.items()},
        "weights": origin,
        "phases": phases,
        "chosen": {"phase": chosen, **phases[chosen]["best"]},
        **({} if test is None else {"test": test}),
        "num_corrupt": num_corrupt,
        "seconds": {part: round(spent, 2) for part, spent in seconds.items()},
    }


def waits_for(phase: dict[str, Any]) -> str:
    """What limits the speed of a finished phase, with its share of the seconds of the training steps."""
    share = phase["share_waiting_for_input"]
    return f"input {share:.0%}" if share > 0.5 else f"compute {1 - share:.0%}"


def show(report: dict[str, Any], workdir: Path) -> None:
    """Prints the result of a run: one row a phase, then the chosen model and where everything lies."""
    rows = []
    for name, phase in report["phases"].items():
        best, last = phase["best"], phase["last"]
        row = [name, f"{best['epoch']}/{phase['epochs']}"]
        row += [number(best["val"].get(key)) for key in ("loss", "accuracy", "auc")]
        row += [number(last["val"]["accuracy"]), f"{phase['images_per_second']:.0f}", f"{phase['seconds']:.1f}"]
        rows.append(row)
    columns = ["phase", "best", "loss", "accuracy", "AUC", "last acc.", "img/s", "seconds"]
    console.say("")
    console.table(f"Result on {report['num_examples']['val']} val images", columns, rows)
    for name, phase in report["phases"].items():
        if (done := len(phase["history"])) < phase["epochs"]:
            best = phase["best"]["epoch"]
            console.say(f"{name} stopped early, after epoch {done} of {phase['epochs']}: none since {best} was better.")
    chosen, counts = report["chosen"], report["class_counts"]["val"]
    largest = max(counts, key=counts.__getitem__)
    share = counts[largest] / sum(counts.values())
    console.say(
        f"Best on val: {chosen['phase']}, epoch {chosen['epoch']}, accuracy {number(chosen['val']['accuracy'])}; "
        f"always answering {largest!r} gives {number(share)}."
    )
    if "test" in report:
        test = report["test"]
        console.say(f"On test, which saw no choice: accuracy {number(test['accuracy'])}, loss {number(test['loss'])}.")
    skipped = sum(report["num_corrupt"].values())
    if skipped:
        console.say(f"{skipped} unreadable images were skipped.")
    waits = ", ".join(f"{name} {waits_for(phase)}" for name, phase in report["phases"].items())
    console.say(f"Steps wait for: {waits} of their time.")
    console.say("Seconds: " + ", ".join(f"{part} {seconds:.1f}" for part, seconds in report["seconds"].items()))
    console.say(f"The record of the run is in {workdir}: report.json, metrics.jsonl, checkpoints/, tensorboard/.")
