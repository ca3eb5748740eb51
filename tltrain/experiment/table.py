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


class Row(NamedTuple):
    """One arm over its finished runs.

    `mean` and `std` (of the sample, NaN for one run) are of the accuracy on `split`, `difference` is the mean over
    seeds of the accuracy minus that of the first arm with the same seed, `low` and `high` its 95 % interval by
    bootstrap over seeds (NaN where fewer than two seeds are shared). `images_per_second` is of the frozen stages, with
    reading and decoding and without compiling: the mean of the runs that computed features from images, NaN where none
    did. `seconds` are the mean of whole runs. `parameters` are those of the whole model, trainable in the chosen phase
    or not.
    """

    arm: str
    split: str
    n: int
    mean: float
    std: float
    difference: float
    low: float
    high: float
    images_per_second: float
    seconds: float
    parameters: int
    trainable_parameters: int


def rows(arms: dict[str, dict[int, dict[str, Any]]]) -> list[Row]:
    """A row for each arm with a finished run; `arms` is `{arm: {seed: content of report.json}}`, the first is the base.

    Accuracy is on test where there is one, else on val at the best epoch of the chosen phase.
    """
    accuracies = {arm: {seed: _scores(r)["accuracy"] for seed, r in runs.items()} for arm, runs in arms.items()}
    base = next(iter(accuracies.values()), {})
    made = []
    for arm, runs in arms.items():
        if not runs:
            continue
        values, reports = list(accuracies[arm].values()), list(runs.values())
        shared = [seed for seed in accuracies[arm] if seed in base]
        differences = np.asarray([accuracies[arm][seed] - base[seed] for seed in shared])
        phase = reports[0]["phases"][reports[0]["chosen"]["phase"]]
        made.append(
            Row(
                arm,
                "test" if "test" in reports[0] else "val",
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


def _scores(result):
    return result["test"] if "test" in result else result["chosen"]["val"]


def _speed(reports):
    """Mean images a second of the frozen stages; records from before it was measured have no "features"."""
    speeds = [r["features"]["images_per_second"] for r in reports if "features" in r]
    speeds = [speed for speed in speeds if speed is not None]
    return statistics.fmean(speeds) if speeds else float("nan")


HEADER = ("arm", "n", "accuracy", "difference", "95 % interval", "img/s", "seconds", "parameters", "trainable")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, accuracies in percent."""
    accuracy = f"{100 * row.mean:.2f}" + ("" if np.isnan(row.std) else f" ± {100 * row.std:.2f}")
    difference = "" if np.isnan(row.difference) else _points(row.difference)
    interval = "" if np.isnan(row.low) else f"[{_points(row.low)}, {_points(row.high)}]"
    return (
        row.arm,
        str(row.n),
        accuracy,
        difference,
        interval,
        "" if np.isnan(row.images_per_second) else f"{row.images_per_second:.1f}",
        report.duration(row.seconds),
        f"{row.parameters:,}",
        f"{row.trainable_parameters:,}",
    )


def _points(difference):
    return f"{round(100 * difference, 2) + 0.0:+.2f}"  # adding zero takes the sign of a negative one


def write(made: Sequence[Row], folder: Path) -> None:
    """Writes `table.csv` (shares of one, all digits), `table.md` and `table.tex` (as on the terminal) to `folder`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(["" if value != value else value for value in row] for row in made)
    body = [cells(row) for row in made]
    with places.writing(f"the table of {folder}", "free space or check the folder; the same command writes it"):
        (folder / "table.csv").write_text(text.getvalue())
        (folder / "table.md").write_text(_markdown(body))
        (folder / "table.tex").write_text(_latex(body))


def _markdown(body):
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(body):
    def line(parts):
        text = " & ".join(parts).replace("_", r"\_").replace("%", r"\%").replace("±", r"$\pm$")
        return rf"{text} \\"

    columns = "l" + "r" * (len(HEADER) - 1)
    rules = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(HEADER), r"\midrule"]
    return "\n".join([*rules, *map(line, body), r"\bottomrule", r"\end{tabular}", ""])
