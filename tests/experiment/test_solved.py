"""Heads that are solved for go the whole way that trained ones go, or are refused in a line."""

import json
import shutil

import jax
import numpy as np
import pytest
from devices import on_devices
from test_hosts import Job
from test_kinds import call
from test_train import assert_same_run, run, run_stopped

from tltrain import evaluate, export, predict, report
from tltrain.checks import examination, settings
from tltrain.checks.case import Case
from tltrain.errors import ConfigError
from tltrain.experiment import finished, range_test, sweeping
from tltrain.exports.formats import FORMATS
from tltrain.runtime.process import Process
from tltrain.training import logreg
from tltrain.training.setup import read_data


@pytest.fixture(params=["ridge", "logreg", "knn"])
def config(request, tiny):
    tiny.probe.update(optimizer=request.param, epochs=1, weight_decay=1.0 if request.param == "ridge" else 0.0)
    tiny.finetune.epochs = 0
    return tiny


only = pytest.mark.parametrize
knn, logistic = (only("config", [name], indirect=True) for name in ("knn", "logreg"))


def pooled(done, split):
    features = np.zeros((len(split.ids), 1280), np.float32)
    return features, finished.evaluate(done, split, Process(), features)


def head_of(path):
    return jax.tree.map(np.asarray, finished.load(path).variables["params"]["head"])


def test_it_is_recorded_as_one_epoch_and_the_verbs_know_its_answers(config, tmp_path, images):
    result = run(config, tmp_path / "run")
    assert result["chosen"]["val"]["accuracy"] > 0.9 and len(result["phases"]["probe"]["history"]) == 1
    solved = result["phases"]["probe"]["solved"]
    wanted = {"ridge": {"penalty"}, "knn": {"neighbors"}}
    wanted["logreg"] = {"penalty", "num_held_out", "held_out", "num_iterations", "converged"}
    assert set(solved) == wanted[config.probe.optimizer]
    assert json.loads((tmp_path / "run" / "report.json").read_text())["phases"]["probe"]["solved"] == solved
    assert call(evaluate, "--workdir", tmp_path / "run") == 0
    places = ("--output", tmp_path / "out.jsonl", "--features", tmp_path / "out.npz")
    assert call(predict, "--workdir", tmp_path / "run", images, *places) == 0
    assert np.load(tmp_path / "out.npz")["features"].shape == (48, 1280)
    assert call(report, tmp_path / "run") == 0
    assert call(export, "--workdir", tmp_path / "run", "--format", "stablehlo") == 0


def test_a_run_that_was_stopped_anywhere_gives_the_same(config, tmp_path):
    run(config, tmp_path / "whole")
    run_stopped(config, tmp_path / "stopped", (0, 4, 9, 14))
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.full
def test_two_devices_agree_with_one(config, tmp_path):
    one, *others = on_devices(config, tmp_path, 2)
    for other in others:
        (a,), (b,) = one["probe"]["history"], other["probe"]["history"]
        assert b["val"] == pytest.approx(a["val"], rel=1e-4) and b["train"] == pytest.approx(a["train"], rel=1e-4)


@logistic
def test_val_has_no_part_in_the_penalty(config, tmp_path):
    config.data.splits = ("train[:50%]", "train[50%:75%]")
    first = run(config, tmp_path / "a")["phases"]["probe"]["solved"]
    config.data.splits = ("train[:50%]", "train[75%:]")
    assert run(config, tmp_path / "b")["phases"]["probe"]["solved"] == first
    jax.tree.map(np.testing.assert_array_equal, head_of(tmp_path / "a"), head_of(tmp_path / "b"))


@logistic
@pytest.mark.parametrize(("shots", "num_held_out"), [(1, 0), (2, 2)])
def test_where_nothing_can_be_held_out_the_penalty_is_one(config, tmp_path, capsys, shots, num_held_out):
    config.data.shots = shots
    found = run(config, tmp_path / "run")["phases"]["probe"]["solved"]
    assert found["num_held_out"] == num_held_out == len(found["held_out"]) * num_held_out / len(logreg.PENALTIES)
    said = "1, no class has an example to choose by" if shots == 1 else "best on 2 examples of train"
    assert said in capsys.readouterr().out and (found["penalty"] == 1.0 or shots > 1)


@knn
@pytest.mark.parametrize(("head", "shots", "neighbors"), [("auto", 0, 5), ("softmax", 0, 5), ("auto", 1, 20)])
def test_nearest_neighbours_are_those_of_a_plain_loop(config, tmp_path, head, shots, neighbors):
    config.model.head, config.data.shots, config.probe.neighbors = head, shots, neighbors
    config.data.splits = ("train[:60%]", "train[60%:]")
    result = run(config, tmp_path / "run")
    done, data = finished.load(tmp_path / "run"), read_data(config)
    train = data.splits["train"]
    known, labels = pooled(done, train)[0][train.rows], train.labels[train.rows]
    asked, found = pooled(done, data.splits["val"])
    for row, said in zip(asked.astype(float), done.task.said(found.logits), strict=True):
        cosines = [row @ other / np.linalg.norm(row) / np.linalg.norm(other.astype(float)) for other in known]
        votes = np.zeros(2)
        for i in np.argsort(cosines)[::-1][:neighbors]:
            votes[labels[i]] += np.exp(cosines[i] / 0.07)
        np.testing.assert_allclose(said, votes / votes.sum(), atol=1e-4)
    assert result["phases"]["probe"]["solved"]["neighbors"] == (2 if shots else neighbors)


@knn
def test_what_cannot_be_read_is_nobodys_neighbour(config, tmp_path):
    root = shutil.copytree(config.data.source.removeprefix("folder:"), tmp_path / "images")
    config.data.source, config.data.max_corrupt = f"folder:{root}", 0.5
    train = read_data(config).splits["train"]
    (root / train.ids[3]).write_bytes(b"\xff\xd8 no image")
    config.probe.neighbors = 100
    assert run(config, tmp_path / "run")["phases"]["probe"]["solved"]["neighbors"] == train.num_examples - 1
    assert np.flatnonzero(~head_of(tmp_path / "run")["mask"]).tolist() == [3]


@knn
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "stablehlo"])
def test_neighbours_are_no_layer_of_keras(config, tmp_path, capsys, name):
    run(config, tmp_path / "run")
    assert call(export, "--workdir", tmp_path / "run", "--format", name) == ConfigError.exit_code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "of which there is none of nearest neighbours" in line


def test_there_is_no_rate_to_find(config, tmp_path):
    with pytest.raises(ConfigError, match="takes no steps, so there is no rate"):
        range_test.run(config, tmp_path, "probe", (1e-5, 1.0, 20), Process())


def test_the_doctor_has_no_step_to_measure(config, tmp_path):
    case = Case(settings.repaired(config), tmp_path / "run", 0, lambda: False)
    found = [finding for _, finding in examination.examine(config, case)]
    assert not [finding for finding in found if finding.level == "problem"], found
    assert any("no training step, its head is solved for" in finding.text for finding in found)


def test_a_sweep_has_it_beside_a_trained_probe(config, tmp_path):
    solved = {f"probe.{key}": config.probe[key] for key in ("optimizer", "epochs", "weight_decay")}
    trained = {"probe.optimizer": "adam", "probe.epochs": 1, "probe.weight_decay": 0.0}
    members = sweeping.members(config, [trained, solved], 2, tmp_path / "sweep")
    assert sweeping.run(members, tmp_path / "sweep", Process()) == 0
    assert len((tmp_path / "sweep" / "table.csv").read_text().splitlines()) == 3


@pytest.mark.full
def test_several_processes_share_ridge_alone(config, tmp_path):
    two = Job(config, tmp_path / "two", 2)
    wanted = 0 if config.probe.optimizer == "ridge" else 2
    assert two.end() == [wanted, wanted], two.told()
    assert wanted == 0 or all("is for one process, here are 2" in said for said in two.told())
