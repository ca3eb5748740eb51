"""Probes trained together are the probes trained alone, to float32 rounding, with the same record."""

import contextlib
import json

import numpy as np
import pytest
from conftest import graded
from test_train import TIMES
from test_train import run as run_alone

from tltrain.errors import TerminatedError
from tltrain.experiment import sweeping, train
from tltrain.pages import run_page
from tltrain.runtime.checkpoint import Checkpoints
from tltrain.runtime.process import Process

RATES_AND_DECAYS = [
    {"probe.learning_rate": rate, "probe.weight_decay": decay} for rate in (1e-2, 1e-3) for decay in (0.0, 3.0)
]


@pytest.fixture
def probes(tiny):
    tiny.data.splits = ("train[:60%]", "train[60%:80%]", "train[80%:]")
    tiny.model.dropout = 0.2
    tiny.finetune.epochs = 0
    tiny.probe.update(epochs=3, optimizer="adamw", schedule="cosine", warmup_epochs=0.5, clip_norm=1.0, ema=0.8)
    tiny.log.every_steps = 2
    return tiny


@pytest.fixture
def no_run_alone(monkeypatch):
    monkeypatch.setattr(train, "run", None)


def report_of(path):
    return json.loads((path / "report.json").read_text())


def best_of(path):
    with contextlib.closing(Checkpoints(path / "checkpoints" / "probe", 2, ())) as checkpoints:
        return checkpoints.restore(checkpoints.best())[0]


def assert_close(a, b, path=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - set(TIMES):
            assert_close(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, f"{path}[{i}]")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6), path
    else:
        assert a == b, path


@pytest.mark.optimized
@pytest.mark.parametrize("parallel", graded(["jit", "pmap"], ["jit"]))
def test_a_probe_trained_together_is_the_probe_trained_alone(probes, tmp_path, parallel):
    probes.parallel = parallel
    runs = sweeping.members(probes, RATES_AND_DECAYS, 2, tmp_path / "sweep")
    assert sweeping.run(runs, tmp_path / "sweep", Process()) == 0
    for member in (runs[3], runs[4]):
        alone = tmp_path / member.path.name
        run_alone(member.config, alone)
        assert_close(report_of(member.path), report_of(alone))
        lines = [
            [json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (member.path, alone)
        ]
        assert_close(*lines)
        together, single = best_of(member.path), best_of(alone)
        assert together.keys() == single.keys()
        for name, leaf in single.items():
            np.testing.assert_allclose(together[name], leaf, rtol=1e-4, atol=1e-6, err_msg=name)
        assert f"{member.path / 'report.html'}" in (member.path / "output.txt").read_text()


def test_a_page_that_fails_leaves_its_record_and_the_pages_of_the_others(probes, tmp_path, monkeypatch, capsys):
    def fails_once(workdir, read_data):
        if "0.001" in str(workdir):
            raise OSError("no space")
        return render(workdir, read_data)

    render = run_page.render
    monkeypatch.setattr(run_page, "render", fails_once)
    arms = [{"probe.learning_rate": rate} for rate in (1e-3, 1e-2)]
    assert sweeping.run(sweeping.members(probes, arms, 1, tmp_path), tmp_path, Process()) == 6
    assert len(list(tmp_path.rglob("report.json"))) == 2
    assert [path.parts[-3] for path in tmp_path.rglob("report.html")] == ["learning_rate=0.01"]
    assert "the run is finished, its page is not; OSError: no space; " in capsys.readouterr().err


def test_a_patient_probe_stops_where_it_stops_alone(probes, tmp_path):
    probes.probe.update(epochs=6, patience=1, ema=0.0)
    probes.checkpoint.best = "loss"
    arms = [{"probe.learning_rate": rate} for rate in (1e-30, 1e-2)]
    runs = sweeping.members(probes, arms, 1, tmp_path / "sweep")
    assert sweeping.run(runs, tmp_path / "sweep", Process()) == 0
    for member in runs:
        run_alone(member.config, tmp_path / member.arm)
        assert_close(report_of(member.path), report_of(tmp_path / member.arm))
    histories = [report_of(member.path)["phases"]["probe"]["history"] for member in runs]
    assert len(histories[0]) == 2 < len(histories[1])


def test_numbers_and_seeds_make_a_difference_and_one_program_trains_them_all(probes, tmp_path, no_run_alone):
    runs = sweeping.members(probes, RATES_AND_DECAYS, 2, tmp_path)
    assert sweeping.run(runs, tmp_path, Process()) == 0
    losses = [report_of(member.path)["phases"]["probe"]["last"]["train"]["loss"] for member in runs]
    assert len(set(losses)) == len(runs)


def test_random_weights_differ_by_seed(probes, tmp_path):
    runs = sweeping.members(probes, RATES_AND_DECAYS[:1], 2, tmp_path)
    assert sweeping.run(runs, tmp_path, Process()) == 0
    a, b = (best_of(member.path)["params.backbone.Conv1.Conv1.kernel"] for member in runs)
    assert not np.array_equal(a, b)


def test_a_probe_that_diverges_fails_alone(probes, tmp_path, no_run_alone, capsys):
    probes.probe.update(optimizer="sgd", warmup_epochs=0, clip_norm=0)
    arms = [{"probe.learning_rate": rate} for rate in (1e-3, 1e38, 1e-2)]
    assert sweeping.run(sweeping.members(probes, arms, 1, tmp_path), tmp_path, Process()) == 3
    assert sorted(path.parts[-3] for path in tmp_path.rglob("report.json")) == [
        "learning_rate=0.001",
        "learning_rate=0.01",
    ]
    assert "learning_rate=1e+38, seed 0 failed: probe: " in capsys.readouterr().err


def test_a_stopped_group_begins_again_and_what_is_finished_stays(probes, tmp_path, no_run_alone):
    runs = sweeping.members(probes, RATES_AND_DECAYS, 1, tmp_path)
    calls = []
    with pytest.raises(TerminatedError):
        sweeping.run(runs, tmp_path, Process(asked=lambda: len(calls) > 20 or calls.append(None)))
    assert not list(tmp_path.rglob("report.json"))
    assert sweeping.run(runs, tmp_path, Process()) == 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("report.json")}
    assert len(written) == len(runs)
    assert sweeping.run(runs, tmp_path, Process()) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
