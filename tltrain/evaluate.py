"""`python -m tltrain.evaluate --workdir DIR`: the best model of a finished run on any split or folder."""

import argparse
import json
import sys

from tltrain import config, places
from tltrain.data import sources
from tltrain.data.split import Split
from tltrain.errors import ConfigError
from tltrain.experiment import evaluation, finished, report
from tltrain.experiment.evaluation import Evaluation
from tltrain.experiment.finished import Finished
from tltrain.runtime import command, command_line, console
from tltrain.runtime.process import Process
from tltrain.training import scores

_SHOWN = 50  # classes of the table on the terminal


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    parser = command_line.of_run("evaluate")
    for name, meaning in {
        "--split": "split expression, such as 'test' or 'train[80%%:]'; default: the run's last",
        "--source": "tfds:NAME, folder:PATH or table:PATH, with the run's class names; default: its own",
        "--data-dir": "where TFDS keeps its data sets; default: the run's own",
    }.items():
        parser.add_argument(name, type=command_line.text, help=meaning)
    text = "write every prediction to this file of JSON lines"
    parser.add_argument("--output", type=command_line.output_file, help=text)
    return command.run(parser, argv, _run)


def _run(arguments: argparse.Namespace, process: Process) -> int:
    run = finished.load(arguments.workdir)
    given = {"source": arguments.source, "data_dir": arguments.data_dir}
    run.config.data.update({key: value for key, value in given.items() if value is not None})
    if arguments.source and not arguments.source.startswith("tfds:"):
        run.config.data.data_dir = ""
    if arguments.source and not arguments.source.startswith("table:"):
        run.config.data.split = ""
    config.validate(run.config)
    run = run._replace(config=sources.with_absolute_paths(run.config))
    expression = arguments.split or _last_split(arguments, run)
    own = not (arguments.source or arguments.data_dir)
    split = finished.own_split(run, expression) if own else run.split(expression)
    found = finished.evaluate(run, split, process)
    _show(run, split, found)
    if arguments.output:
        lines = evaluation.predictions(run.task, {split.expression: split}, {split.expression: found})
        places.write_lines(arguments.output, (json.dumps(line) for line in lines))
        console.say(f"Every prediction is in {arguments.output}.")
    return 0


def _last_split(arguments, run):
    if arguments.source:
        raise ConfigError("--source without --split; on the command line; say which, as in --split train for all of it")
    return run.config.data.splits[-1]


def _show(run: Finished, split: Split, found: Evaluation) -> None:
    measured = found.scores
    unreadable = int((~found.counted).sum())
    console.say(
        f"{run.path}, {run.phase}, on {split.expression}: {int(found.counted.sum())} {run.kind.name}"
        + (f", {unreadable} unreadable ones skipped" if unreadable else "")
    )
    console.say(report.figures({run.task.metric: measured[run.task.metric]} | measured, ", "))
    classes = list(run.task.by_class(*map(found.of_counted, (found.logits, split.labels))).items())
    if not classes:
        return
    shown = classes if len(classes) <= _SHOWN else scores.hardest(classes, _SHOWN)
    rows = [[name, str(c.support), *map(report.number, (c.precision, c.recall, c.f1))] for name, c in shown]
    console.table("", ["class", run.kind.name, "precision", "recall", "F1"], rows)
    if len(shown) < len(classes):
        console.say(f"{len(classes) - len(shown)} classes of higher F1 are not shown.")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
