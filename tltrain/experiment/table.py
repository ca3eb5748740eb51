"""The table of a sweep: one row an arm, over its seeds, from the `report.json` of each run."""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tltrain import places
from tltrain.experiment import report
from tltrain.training import bootstrap
from tltrain.training.tasks.task import LABELS

_OF_LATEX = str.maketrans({c: rf"\{c}" for c in "&%$#_{}"} | {"±": r"$\pm$", "~": r"\textasciitilde{}"})
_OF_LATEX |= str.maketrans({"^": r"\textasciicircum{}", "\\": r"\textbackslash{}"})


class Row(NamedTuple):
    """One arm over its finished runs.

    `mean` and `std` (of the sample, NaN for one run) are of `metric`, such as accuracy, on `split`, `difference` is the
    mean over seeds of it minus that of the first arm with the same seed, `low` and `high` its 95 % interval by
    bootstrap over seeds (NaN where fewer than two seeds are shared). `examples_per_second` is of the frozen stages,
    with reading and decoding and without compiling: the mean of the runs that computed features, NaN where none did.
    `seconds` are the mean of whole runs. `parameters` are those of the whole model, trainable in the chosen phase or
    not.
    """

    arm: str
    split: str
    metric: str
    n: int
    mean: float
    std: float
    difference: float
    low: float
    high: float
    examples_per_second: float
    seconds: float
    parameters: int
    trainable_parameters: int


def rows(arms: dict[str, dict[int, dict[str, Any]]]) -> list[Row]:
    """A row for each arm with a finished run; `arms` is `{arm: {seed: content of report.json}}`, the first is the base.

    The metric is that on test where there is one, else on val at the best epoch of the chosen phase.
    """
    of_runs = {arm: {seed: _score(r) for seed, r in runs.items()} for arm, runs in arms.items()}
    base, first = next(iter(of_runs.values()), {}), ""
    made = []
    for arm, runs in arms.items():
        if not runs:
            continue
        values, reports = list(of_runs[arm].values()), list(runs.values())
        metric = reports[0]["task"]["metric"]
        first = first or metric
        shared = [seed for seed in of_runs[arm] if seed in base and metric == first]
        differences = np.asarray([of_runs[arm][seed] - base[seed] for seed in shared])
        phase = reports[0]["phases"][reports[0]["chosen"]["phase"]]
        made.append(
            Row(
                arm,
                "test" if "test" in reports[0] else "val",
                metric,
                len(values),
                statistics.fmean(values),
                statistics.stdev(values) if len(values) > 1 else float("nan"),
                *bootstrap.estimates([bootstrap.mean(differences)], len(shared))[0],
                _speed(reports),
                statistics.fmean(sum(r["seconds"].values()) for r in reports),
                phase["trainable_parameters"] + phase["frozen_parameters"],
                phase["trainable_parameters"],
            )
        )
    return made


def _score(result):
    return (result["test"] if "test" in result else result["chosen"]["val"])[result["task"]["metric"]]


def _speed(reports):
    """Mean examples a second of the frozen stages."""
    speeds = [speed for r in reports if (speed := r["features"]["examples_per_second"]) is not None]
    return statistics.fmean(speeds) if speeds else float("nan")


def header(metric: str) -> tuple[str, ...]:
    """What stands above the `cells` of rows of a metric."""
    label = LABELS.get(metric, metric)
    return ("arm", "n", label, "difference", "95 % interval", "examples/s", "seconds", "parameters", "trainable")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, accuracies in percent, other metrics in their own units."""
    scale, digits = (100, 2) if row.metric == "accuracy" else (1, 4)

    def signed(value):
        return f"{round(scale * value, digits) + 0.0:+.{digits}f}"  # adding zero takes the sign of a negative one

    mean = f"{scale * row.mean:.{digits}f}" + ("" if np.isnan(row.std) else f" ± {scale * row.std:.{digits}f}")
    difference = "" if np.isnan(row.difference) else signed(row.difference)
    interval = "" if np.isnan(row.low) else f"[{signed(row.low)}, {signed(row.high)}]"
    return (
        row.arm,
        str(row.n),
        mean,
        difference,
        interval,
        "" if np.isnan(row.examples_per_second) else f"{row.examples_per_second:.1f}",
        report.duration(row.seconds),
        f"{row.parameters:,}",
        f"{row.trainable_parameters:,}",
    )


def write(made: Sequence[Row], folder: Path) -> None:
    """Writes `table.csv` (shares of one, all digits), `table.md` and `table.tex` (as on the terminal) to `folder`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(["" if value != value else value for value in row] for row in made)
    body = [cells(row) for row in made]
    with places.writing(f"the table of {folder}", "free space or check the folder; the same command writes it"):
        (folder / "table.csv").write_text(text.getvalue())
        (folder / "table.md").write_text(_markdown(header(made[0].metric), body))
        (folder / "table.tex").write_text(_latex(header(made[0].metric), body))


def _markdown(header, body):
    body = [[cell.replace("|", r"\|") for cell in line] for line in body]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(header, body):
    def line(parts):
        return rf"{' & '.join(part.translate(_OF_LATEX) for part in parts)} \\"

    columns = "l" + "r" * (len(header) - 1)
    rules = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(header), r"\midrule"]
    return "\n".join([*rules, *map(line, body), r"\bottomrule", r"\end{tabular}", ""])
