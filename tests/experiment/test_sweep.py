"""Sweeps: every arm with every seed, past what fails, from where it stopped, to a table that can be trusted."""

import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from test_main import run as run_command
from test_main import write_config
from test_train import run as run_alone
from test_train import without_times

from tltrain.errors import ConfigError, TerminatedError
from tltrain.experiment import sweeping, table
from tltrain.runtime import job_array
from tltrain.runtime.process import Process

ARMS = [{}, {"finetune.freeze_until": "all"}]


CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_accepted_with_all_its_arms(path, images, tmp_path):
    file = runpy.run_path(str(path))
    config, arms = file["get_config"](), list(file["sweep"]()) if "sweep" in file else [{}]
    if not config.data.split:  # a column of a table that comes with the installation
        config.data.source = f"folder:{images}"
    assert len(sweeping.members(config, arms, 2, tmp_path)) == 2 * len(arms)


def reports(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("report.json")}


@pytest.mark.optimized
def test_each_run_of_a_sweep_is_the_run_alone(tiny, tmp_path):
    runs = sweeping.members(tiny, ARMS, 2, tmp_path / "sweep")
    assert sweeping.run(runs, tmp_path / "sweep", Process()) == 0
    assert len(reports(tmp_path / "sweep")) == 4
    tiny.update(seed=1)
    tiny.finetune.freeze_until = "all"
    alone = json.loads(json.dumps(run_alone(tiny, tmp_path / "alone")))
    path = tmp_path / "sweep" / "freeze_until=all" / "seed_1"
    assert without_times(json.loads((path / "report.json").read_text())) == without_times(alone)
    assert "Result on" in (path / "output.txt").read_text()


def test_an_arm_that_fails_is_shown_and_the_others_go_on(tiny, tmp_path, capsys):
    tiny.finetune.update(optimizer="sgd", freeze_until=None)
    runs = sweeping.members(tiny, [{"finetune.learning_rate": 1e30}, {"finetune.learning_rate": 1e-3}], 1, tmp_path)
    assert sweeping.run(runs, tmp_path, Process()) == 3
    assert list(reports(tmp_path)) == ["learning_rate=0.001/seed_0/report.json"]
    shown = capsys.readouterr()
    assert "learning_rate=1e+30, seed 0 failed: finetune: " in shown.err
    assert "1 of 2 runs failed" in shown.out and "failed" in shown.out.partition("Accuracy on val")[2]


def test_a_stopped_sweep_goes_on_and_finished_runs_are_not_done_again(tiny, tmp_path):
    runs = sweeping.members(tiny, ARMS, 1, tmp_path)
    with pytest.raises(TerminatedError):
        sweeping.run(runs, tmp_path, Process(asked=lambda: bool(reports(tmp_path))))
    (first, finished_at), *others = reports(tmp_path).items()
    assert not others
    assert sweeping.run(sweeping.members(tiny, ARMS, 1, tmp_path), tmp_path, Process()) == 0
    assert reports(tmp_path)[first] == finished_at and len(reports(tmp_path)) == 2


def test_tasks_of_an_array_divide_what_is_not_trained_together_and_the_last_shows_the_table(
    tiny, tmp_path, capsys, monkeypatch
):
    tiny.finetune.epochs = 0
    arms = [{"probe.learning_rate": 1e-3}, {"probe.augment": True}, {"probe.learning_rate": 1e-2}]
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", "3")
    counts = []
    for task in ("4", "7"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        runs = sweeping.members(tiny, arms, 1, tmp_path)
        assert sweeping.run(runs, tmp_path, Process(), job_array.task() or (0, 1)) == 0
        counts.append((len(reports(tmp_path)), "Accuracy on val" in capsys.readouterr().out))
    assert counts == [(2, False), (3, True)]


@pytest.mark.parametrize(
    "given",
    {
        "--array=1,9": {"ID": "9", "MIN": "1", "MAX": "9", "STEP": "1", "COUNT": "2"},
        "--array=0,1,4": {"ID": "1", "MIN": "0", "MAX": "4", "STEP": "1", "COUNT": "3"},
        "by hand": {"ID": "2", "COUNT": "2"},
        "no number": {"ID": "x", "COUNT": "2"},
        "no step": {"ID": "0", "COUNT": "2", "STEP": "0"},
    }.values(),
    ids=str,
)
def test_tasks_of_an_array_of_which_nobody_knows_the_share_are_refused(monkeypatch, given):
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    with pytest.raises(ConfigError, match=f"ID {given['ID']}.*--array=0-N"):
        job_array.task()


@pytest.mark.parametrize(
    ("arms", "message"),
    {
        "misspelt": ([{}, {"finetune.freeze_untl": "all"}], "did you mean 'finetune.freeze_until'"),
        "no such stage": ([{}, {"finetune.freeze_until": "block_99"}], "block_99.*in the arm"),
        "wrong type": ([{"probe.epochs": "many"}], "probe.epochs|many"),
        "twice": ([{"seed": 1}], "--seeds"),
        "equal arms": ([{}, {}], "twice"),
        "one folder": ([{"log.wandb_project": "a/b"}, {"log.wandb_project": "a_b"}], "wandb_project=a_b would share"),
    }.values(),
)
def test_a_wrong_arm_fails_before_the_first_run(tiny, tmp_path, arms, message):
    with pytest.raises(ConfigError, match=message):
        sweeping.members(tiny, arms, 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_config_is_refused_before_the_first_run(tiny, tmp_path):
    sweeping.run(sweeping.members(tiny, [{}], 1, tmp_path), tmp_path, Process())
    tiny.probe.learning_rate = 0.5
    with pytest.raises(ConfigError, match=r"probe.learning_rate: 0.001 -> 0.5"):
        sweeping.members(tiny, [{}], 1, tmp_path)


def report_of(accuracy, examples_per_second=None):
    phase = {"trainable_parameters": 1281, "frozen_parameters": 2_223_872}
    chosen = {"phase": "probe", "val": {"accuracy": accuracy}}
    features = {"examples_per_second": examples_per_second}
    seconds = {"train": 2.0, "eval": 1.0}
    found = {"chosen": chosen, "phases": {"probe": phase}, "features": features, "seconds": seconds}
    return found | {"task": {"name": "classification", "metric": "accuracy"}}


def test_the_table_pairs_seeds_and_agrees_in_every_format(tmp_path):
    arms = {"base": {0: report_of(0.5), 1: report_of(0.75)}, "rate_1": {1: report_of(1.0), 0: report_of(0.75)}}
    base, other = table.rows(arms)
    assert (base.n, base.mean, base.difference) == (2, 0.625, 0.0)
    assert base.std == pytest.approx(np.std([0.5, 0.75], ddof=1))
    assert (other.difference, other.low, other.high, other.seconds) == (0.25, 0.25, 0.25, 3.0)
    table.write([base, other], tmp_path)
    first, second = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert float(first["mean"]) == 0.625 and float(second["difference"]) == 0.25
    assert "| rate_1 | 2 | 87.50 ± 17.68 | +25.00 |" in (tmp_path / "table.md").read_text()
    assert r"rate\_1 & 2 & 87.50 $\pm$ 17.68 & +25.00 &" in (tmp_path / "table.tex").read_text()


def test_the_name_of_an_arm_is_itself_in_markdown_and_latex(tmp_path):
    table.write(table.rows({"weights={'a|b_c': 2.0} & #1^\\~": {0: report_of(0.5)}}), tmp_path)
    assert r"| weights={'a\|b_c': 2.0} & #1^\~ | 1 |" in (tmp_path / "table.md").read_text()
    expected = r"weights=\{'a|b\_c': 2.0\} \& \#1\textasciicircum{}\textbackslash{}\textasciitilde{} & 1 &"
    assert expected in (tmp_path / "table.tex").read_text()


@pytest.mark.parametrize(
    ("speeds", "mean", "shown"),
    {
        "all computed": ((200.0, 100.5), 150.25, "150.2"),
        "one read the store": ((200.0, None), 200.0, "200.0"),
        "all read it": ((None, None), float("nan"), ""),
    }.values(),
)
def test_speed_is_of_the_runs_that_computed_features_and_parameters_are_all(tmp_path, speeds, mean, shown):
    runs = {seed: report_of(0.5, speed) for seed, speed in enumerate(speeds)}
    [row] = table.rows({"base": runs})
    assert row.examples_per_second == pytest.approx(mean, nan_ok=True) and row.parameters == 2_225_153
    assert dict(zip(table.header("accuracy"), table.cells(row), strict=True))["examples/s"] == shown
    table.write([row], tmp_path)
    [line] = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert line["examples_per_second"] == ("" if np.isnan(mean) else str(mean)) and line["parameters"] == "2225153"
    assert f"| {shown} | 3.0 | 2,225,153 | 1,281 |" in (tmp_path / "table.md").read_text()
    assert rf"& {shown} & 3.0 & 2,225,153 & 1,281 \\" in (tmp_path / "table.tex").read_text()


def test_the_command_line_runs_the_sweep_of_a_config_file(images, tmp_path):
    path = write_config(tmp_path, images, "config.finetune.epochs = 0")
    path.write_text(path.read_text() + '\n\ndef sweep():\n    yield {"probe.learning_rate": 1e-2}\n')
    done = run_command(path, "--workdir", str(tmp_path / "runs"), "--seeds=2", verb="sweep")
    assert done.returncode == 0, done.stderr
    assert "[2/2] learning_rate=0.01, seed 1: val accuracy" in done.stdout and "± " in done.stdout
    assert not done.stderr
    path.write_text(path.read_text().replace("def sweep", "def swep"))
    done = run_command(path, verb="sweep")
    assert done.returncode == 2 and "define sweep()" in done.stderr
