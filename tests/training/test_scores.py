"""Scores of predictions equal the plain formulas, and their intervals those of theory."""

import json

import numpy as np
import pytest
from conftest import bytes_each

from tltrain.errors import WorkdirError
from tltrain.pages import predictions as pages
from tltrain.pages.predictions import read_predictions
from tltrain.training import bootstrap, metrics, scores


def predictions(size, num_classes=2, seed=0, power=1):
    """Examples whose labels are drawn with the very probabilities that are predicted: calibrated by construction.

    Where they are predicted to a `power`, sharper than they are.
    """
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(num_classes, 0.5), size)
    labels = (rng.random(size)[:, None] > probabilities.cumsum(1)[:, :-1]).sum(1)
    losses = -np.log(probabilities[np.arange(size), labels])
    predicted = probabilities**power / (probabilities**power).sum(1, keepdims=True)
    return scores.Predictions.of(tuple(map(str, range(size))), labels, predicted, losses)


def test_the_bootstrap_interval_of_the_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(3, 1, 400)
    (found,) = bootstrap.estimates([bootstrap.mean(values)], 400)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    np.testing.assert_allclose(found[1:], [values.mean() - half, values.mean() + half], atol=0.01)
    assert np.isnan(bootstrap.estimates([bootstrap.mean(values[:1])], 1)[0][1:]).all()


def test_a_resample_by_counts_has_the_area_under_the_curve_of_the_examples_drawn():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 20, 60).astype(float), rng.random(60) < 0.4
    drawn = rng.integers(0, 60, 60)
    counts = np.bincount(drawn, minlength=60).astype(float)[None]
    found = metrics.auc_of_resamples(values, positive)(counts)
    assert found[0] == pytest.approx(metrics.auc(values[drawn], positive[drawn]))


def test_the_calibration_error_is_that_of_guo():
    found = predictions(500, 3)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (found.confidence > low) & (found.confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(found.correct[inside].mean() - found.confidence[inside].mean())
    made = scores.with_intervals(found)
    assert made["ece"].value == pytest.approx(expected)
    bins = scores.reliability(found)
    assert sum(b.size * abs(b.accuracy - b.confidence) for b in bins if b.size) / 500 == pytest.approx(expected)
    assert "auc" not in made


def test_a_calibrated_model_has_a_small_calibration_error_and_an_overconfident_one_a_large_one():
    assert scores.with_intervals(predictions(5_000))["ece"].value < 0.02
    assert scores.with_intervals(predictions(5_000, power=4))["ece"].low > 0.1


def test_the_interval_of_an_accuracy_covers_the_truth_as_often_as_it_says():
    """In 300 samples of 100 coins that fall right 80 times in 100: 95 % of the intervals, give or take 3."""
    covered = 0
    for seed in range(300):
        right = np.random.default_rng(seed).random(100) < 0.8
        (found,) = bootstrap.estimates([bootstrap.mean(right.astype(float))], 100)
        covered += found.low <= 0.8 <= found.high
    assert 0.90 < covered / 300 < 0.98


def test_precision_recall_and_f1_are_those_of_the_formulas():
    counts = np.asarray([[8, 2, 0], [1, 5, 0], [0, 0, 0]])
    labels, predicted = (np.repeat(classes.ravel(), counts.ravel()) for classes in np.indices((3, 3)))
    np.testing.assert_array_equal(scores.confusion(labels, predicted, 3), counts)
    assert scores.confused(labels, predicted, 5) == [(0, 1, 2), (1, 0, 1)]
    assert scores.baseline(labels) == (0, 10 / 16)
    first, second, absent = scores.by_class(labels, predicted, 3)
    assert (first.precision, first.recall, first.support) == (8 / 9, 0.8, 10)
    assert second.f1 == pytest.approx(2 / (1 / second.precision + 1 / second.recall))
    assert absent.support == 0 and np.isnan(absent[:3]).all()


def test_mistakes_are_the_wrong_answers_most_confident_first():
    found = predictions(200, 3)
    rows = scores.mistakes(found, 10)
    assert len(rows) == 10 and not found.correct[rows].any()
    assert (np.diff(found.confidence[rows]) <= 0).all()
    assert found.confidence[rows[-1]] >= np.sort(found.confidence[~found.correct])[-10]


DAMAGED = {
    "absent": None,
    "cut short": '{"split": "val", "id',
    "another split": '{"split": "train"}\n',
    "no id": "{}\n",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_predictions_that_cannot_be_read_are_one_clear_error(tmp_path, case):
    line = {"split": "val", "id": "a", "label": 0, "probabilities": [0.9, 0.1], "loss": 0.105}
    if DAMAGED[case] is not None:
        (tmp_path / "predictions.jsonl").write_text(json.dumps(line) + "\n" + DAMAGED[case])
    with pytest.raises(WorkdirError, match=r"cannot read the predictions; .*predictions\.jsonl"):
        read_predictions(tmp_path, "classification")


def test_a_prediction_takes_few_bytes_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_CHUNK", 64)
    for count in (200, 4200):
        lines = [
            {"split": "val", "id": f"{i:030}", "label": i % 2, "probabilities": [0.9, 0.1], "loss": 0.1}
            for i in range(count)
        ]
        (tmp_path / f"{count}").mkdir()
        (tmp_path / f"{count}" / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert bytes_each(lambda count: read_predictions(tmp_path / f"{count}", "classification"), 200, 4200) < 110
