"""The range test raises the rate as it says, begins where the phase begins, and reads its curve right."""

import json

import numpy as np
import pytest
from test_main import run as run_command
from test_main import write_config
from test_train import run as train_run

from tltrain.errors import ConfigError
from tltrain.experiment import range_test, train
from tltrain.experiment.range_test import Curve, smoothed, suggestion
from tltrain.runtime.process import Process

RATES = 1e-6 * 10 ** (np.arange(121) / 20)


def test_suggestions_of_a_known_curve_are_its_steepest_point_and_a_tenth_of_its_lowest():
    """A loss that falls as a logistic around 1e-3, and rises from 1e-1 on."""
    x = np.log10(RATES)
    loss = 2 - 1 / (1 + np.exp(-3 * (x + 3))) + np.where(x > -1, (x + 1) ** 2, 0)
    found = suggestion(Curve(RATES, loss, loss))
    assert found["steepest"] == pytest.approx(1e-3, rel=0.15)
    assert found["minimum_10"] == pytest.approx(1e-2, rel=0.15)


@pytest.mark.parametrize("slope", [0.0, 0.01])
def test_a_loss_that_never_falls_gives_no_suggestion(slope):
    loss = 1 + slope * np.arange(121)
    assert suggestion(Curve(RATES, loss, loss)) is None


def test_the_running_mean_is_that_of_the_formula_and_ends_at_four_times_its_lowest_or_what_is_not_finite():
    losses = np.asarray([1.0, 0.5, 0.7, 0.2])
    curve = smoothed(RATES, iter(losses))
    weights = [0.9 ** np.arange(n, -1, -1) for n in range(4)]
    np.testing.assert_allclose(curve.smoothed, [w @ losses[: len(w)] / w.sum() for w in weights])
    assert len(smoothed(RATES, iter([1.0, 1.0, 40.0, 1.0])).rates) == 3
    assert len(smoothed(RATES, iter([1.0, 1.0, float("nan"), 1.0])).rates) == 2
    consumed = iter([1.0, 100.0, 1.0])
    smoothed(RATES, consumed)
    assert list(consumed) == [1.0], "no step after the end"


def test_at_the_rate_of_the_phase_its_steps_have_the_losses_of_the_phase(tiny, tmp_path):
    """Low and high all but equal: the losses are those of training."""
    tiny.finetune.update(epochs=4, learning_rate=1e-3)
    tiny.log.every_steps = 1
    train_run(tiny, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line["loss"] for line in lines if line["phase"] == "finetune" and "grad_norm" in line]
    found = range_test.run(tiny, tmp_path / "run", "finetune", (1e-3, 1e-3 * (1 + 1e-6), 20), Process())
    np.testing.assert_allclose(found["losses"], trained, rtol=1e-4)


def test_it_begins_finetune_with_the_probe_of_the_workdir_or_trains_one(tiny, tmp_path, monkeypatch):
    test = (1e-6, 1e-5, 20)
    made = range_test.run(tiny, tmp_path / "made", "finetune", test, Process())
    assert json.loads((tmp_path / "made" / "find_lr.json").read_text()) == made
    train_run(tiny, tmp_path / "run")
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("trained again"))
    tiny.finetune.learning_rate = 0.5  # what the test is for: the rate of finetune may differ
    assert range_test.run(tiny, tmp_path / "run", "finetune", test, Process())["losses"] == made["losses"]
    tiny.probe.learning_rate = 0.5
    with pytest.raises(ConfigError, match="another config"):
        range_test.run(tiny, tmp_path / "run", "finetune", test, Process())


def test_the_rate_rises_exponentially_until_the_loss_diverges_and_nothing_is_changed(tiny, tmp_path, capsys):
    tiny.finetune.epochs = 0
    tiny.probe.update(optimizer="sgd", ema=0.9)
    tiny.loss.label_smoothing = 0.2  # without it a head of any size is right about light and dark
    found = range_test.run(tiny, tmp_path, None, (1e-5, 1e9, 60), Process())
    ratios = np.asarray(found["rates"])[1:] / np.asarray(found["rates"])[:-1]
    np.testing.assert_allclose(ratios, 1e14 ** (1 / 59))
    assert found["phase"] == "probe"
    assert 20 < len(found["rates"]) < 60
    assert 1e-5 < found["suggestion"]["steepest"] < 1e3
    shown = capsys.readouterr().out
    assert "the loss diverged" in shown and "probe.learning_rate: the loss falls fastest at" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "find_lr.html", "find_lr.json"]


WRONG = {"no phase": ("finetune", (1e-5, 1.0, 20), "epochs = 0"), "falling": ("probe", (1.0, 1e-5, 20), "not below")}


@pytest.mark.parametrize("case", WRONG)
def test_a_test_without_sense_is_refused(case, tiny, tmp_path):
    name, test, message = WRONG[case]
    tiny.finetune.epochs = 0
    with pytest.raises(ConfigError, match=message):
        range_test.run(tiny, tmp_path, name, test, Process())


def test_the_command_line_makes_the_test(images, tmp_path):
    path = write_config(tmp_path, images, "config.finetune.epochs = 0")
    done = run_command(path, "--workdir", str(tmp_path / "run"), "--steps=20", "--low=1e-4", verb="find_lr")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "run" / "find_lr.json").read_text())["rates"]) == 20
