"""A few examples of each class, and the probe in closed form."""

import collections

import numpy as np
import pytest
from test_train import run

from tltrain import config as config_lib
from tltrain.cache import extraction
from tltrain.errors import ConfigError, DataError
from tltrain.experiment import finished
from tltrain.runtime.process import Process
from tltrain.training import ridge
from tltrain.training.setup import read_data
from tltrain.training.tasks.classification import class_weights


def drawn_ids(config, seed):
    config = config.copy_and_resolve_references()
    config.seed = seed
    train = read_data(config).splits["train"]
    return [train.ids[i] for i in train.rows]


def test_shots_are_drawn_of_each_class_by_the_seed(tiny):
    tiny.data.shots = 3
    first, again, other = (drawn_ids(tiny, seed) for seed in (0, 0, 1))
    assert collections.Counter(i.partition("/")[0] for i in first) == {"dark": 3, "light": 3}
    assert len(set(first)) == 6 and first == again != other
    tiny.data.shots = 0
    assert set(first) < set(drawn_ids(tiny, 0))


def test_more_shots_than_examples_are_refused(tiny):
    tiny.data.shots = 20
    with pytest.raises(DataError, match=r"dark has 14 training examples, data.shots = 20"):
        read_data(tiny)


@pytest.mark.parametrize("enabled", ["on", "off"])
def test_a_run_sees_its_shots_alone(tiny, tmp_path, enabled):
    tiny.update_from_flattened_dict({"data.shots": 5, "features.enabled": enabled})
    result = run(tiny, tmp_path / "run")
    assert result["num_examples"] == {"train": 10, "val": 12}
    assert result["class_counts"]["train"] == {"dark": 5, "light": 5}
    assert np.sum(result["chosen"]["val"]["confusion"]) == 12
    for phase in result["phases"].values():
        for entry in phase["history"]:
            assert entry["step"] == 2 * entry["epoch"]


def test_other_shots_find_the_features_of_all_examples(tiny, tmp_path, monkeypatch):
    tiny.data.shots = 2
    run(tiny, tmp_path / "a")
    monkeypatch.setattr(extraction, "write", lambda *_: pytest.fail("computed again"))
    tiny.data.shots = 4
    run(tiny, tmp_path / "b")


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_ridge_solves_the_penalised_least_squares(num_outputs):
    rng = np.random.default_rng(0)
    features, targets, weights = rng.normal(2, 1, (9, 5)), rng.normal(size=(9, num_outputs)), rng.uniform(0.5, 2, 9)
    rows = np.concatenate([features, np.ones((9, 1))], 1)
    head = ridge.solve(rows.T @ (weights[:, None] * rows), rows.T @ (weights[:, None] * targets), 0.7)
    penalty = np.sqrt(0.7) * np.eye(6)[:5]  # none of the bias
    root = np.sqrt(weights)[:, None]
    answers = np.concatenate([root * targets, np.zeros((5, num_outputs))])
    expected = np.linalg.lstsq(np.concatenate([root * rows, penalty]), answers)[0]
    np.testing.assert_allclose(head["kernel"], expected[:5], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(head["bias"], expected[5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"features.enabled": "off"}, {"loss.class_weights": "auto"}], ids=str)
def test_a_ridge_probe_is_the_solution_over_the_pooled_features(tiny, tmp_path, changes):
    ridge_of = {"probe.optimizer": "ridge", "probe.epochs": 1, "probe.weight_decay": 3.0, "finetune.epochs": 0}
    tiny.update_from_flattened_dict(ridge_of | changes)
    result = run(tiny, tmp_path / "run")
    assert result["chosen"]["val"]["accuracy"] > 0.9
    done = finished.load(tmp_path / "run")
    train = read_data(tiny).splits["train"]
    features_of = np.zeros((train.num_examples, 1280), np.float32)
    finished.evaluate(done, train, Process(), features_of)
    rows = np.concatenate([features_of.astype(np.float64), np.ones((len(features_of), 1))], 1)
    weights = class_weights(tiny.loss.class_weights, done.class_names, train)[train.labels][:, None]
    head = ridge.solve(rows.T @ (weights * rows), rows.T @ (weights * (2.0 * train.labels[:, None] - 1)), 3.0)
    np.testing.assert_allclose(done.variables["params"]["head"]["kernel"], head["kernel"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(done.variables["params"]["head"]["bias"], head["bias"], rtol=1e-4, atol=1e-7)


NO_CLOSED_FORM = [{"probe.epochs": 2}, {"probe.weight_decay": 0.0}, {"probe.freeze_until": "Conv1"}]


@pytest.mark.parametrize("changes", NO_CLOSED_FORM, ids=str)
def test_ridge_is_refused_where_there_is_no_closed_form(tiny, changes):
    tiny.update_from_flattened_dict(
        {"probe.optimizer": "ridge", "probe.epochs": 1, "probe.weight_decay": 1.0} | changes
    )
    with pytest.raises(ConfigError, match="ridge"):
        config_lib.validate(tiny)
