"""Several labels at once, and numbers, go the whole way that one class goes."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import IMAGES, TINY, tiny_config
from test_kinds import call
from test_train import assert_same_run, run

from tltrain import evaluate, export, predict, report
from tltrain.checks import examination, settings
from tltrain.checks.case import Case
from tltrain.config import default
from tltrain.data import sources, tfds_source
from tltrain.data.split import Split
from tltrain.errors import ConfigError, DataError, TerminatedError
from tltrain.experiment import sweeping, table
from tltrain.exports.formats import FORMATS
from tltrain.models import zoo
from tltrain.runtime.process import Process
from tltrain.training import bootstrap
from tltrain.training.setup import read_data
from tltrain.training.tasks import multi_label
from tltrain.training.tasks.multi_label import MultiLabel
from tltrain.training.tasks.regression import Regression

SIDES = ("left", "right", "nowhere")
FEATURES = {
    "lit_sides": tfds.features.Sequence(tfds.features.ClassLabel(names=SIDES)),
    "lit_share": tfds.features.Scalar(np.float32),
}


def pictures(count=64):
    """Dark pictures, their left and right halves lit or not; which are, and the share of the picture that is."""
    rng = np.random.default_rng(0)
    for i in range(count):
        lit = (bool(i & 1), bool(i & 2))
        pixels = rng.normal(60, 30, (40, 48, 3))
        pixels[:, :24] += 110 * lit[0]
        pixels[:, 24:] += 110 * lit[1]
        sides = [side for side, on in enumerate(lit) if on] or [2]
        yield i, np.clip(pixels, 0, 255).astype(np.uint8), sides, sum(lit) / 2


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "label": FEATURES[self.name]}
        keys = ("image", "label")
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys)

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, pixels, sides, share in pictures():
            yield i, {"image": pixels, "label": sides if self.name == "lit_sides" else share}


class LitSides(_Builder):
    pass


class LitShare(_Builder):
    pass


TASKS = {"multi_label": "lit_sides", "regression": "lit_share"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for made in (LitSides, LitShare):
        made(data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture(params=TASKS)
def config(request, prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.BACKBONES, "tiny", TINY)
    config = tiny_config("", tmp_path / "features")
    config.data.update(source=f"tfds:{TASKS[request.param]}", data_dir=str(prepared))
    config.probe.update(learning_rate=0.01, epochs=6)
    return config


def test_it_is_trained_resumed_bitwise_and_told_by_its_own_scores(config, tmp_path, capsys):
    result = run(config, tmp_path / "whole")
    said, val = capsys.readouterr().out, result["chosen"]["val"]
    if result["task"]["name"] == "multi_label":
        assert {"accuracy", "f1_macro", "f1_micro", "map", "baseline"} < val.keys()
        assert val["accuracy"] > val["baseline"]["accuracy"] and val["map"] > 0.6 and "mAP" in said
        assert result["class_counts"]["train"] == {"left": 24, "right": 23, "nowhere": 13} and "several at once" in said
    else:
        assert {"mae", "r2"} < val.keys() and val["mae"] < val["baseline"]["mae"] and val["r2"] > 0.3
        assert "MAE" in said and "accuracy" not in said
    left = iter([False] * 7)
    with pytest.raises(TerminatedError):
        run(config, tmp_path / "stopped", asked=lambda: next(left, True))
    run(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_the_verbs_know_its_answers(config, tmp_path, capsys, images):
    task = run(config, tmp_path / "run")["task"]["name"]
    for name in ("out.csv", "out.jsonl"):
        assert call(predict, "--workdir", tmp_path / "run", images, "--output", tmp_path / name) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines) == 48
    if task == "multi_label":
        assert set(lines[0]) == {"file", "classes", "probabilities"} and "probability of left" in rows[0]
    else:
        assert float(rows[0]["predicted"]) == lines[0]["predicted"]
    assert call(evaluate, "--workdir", tmp_path / "run") == 0
    assert call(export, "--workdir", tmp_path / "run", "--format", "stablehlo") == 0
    exported = jax.export.deserialize((tmp_path / "run" / "export" / "model.stablehlo").read_bytes())
    assert exported.out_avals[0].shape[1] == (3 if task == "multi_label" else 1)
    assert call(report, tmp_path / "run") == 0
    page = (tmp_path / "run" / "report.html").read_text()
    wanted = ("macro F1", "with a wrong label") if task == "multi_label" else ("MAE", "The largest errors")
    assert all(text in page for text in wanted) and "Confusion" not in page
    assert call(report, tmp_path / "run", tmp_path / "run", "--output", tmp_path / "both.html") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.full
def test_every_export_gives_its_answers(config, tmp_path, capsys):
    config.model.backbone = "mobilenet_v2_0.35"
    config.finetune.epochs = 0
    output = {"multi_label": "probabilities", "regression": "prediction"}[run(config, tmp_path / "run")["task"]["name"]]
    assert call(export, "--workdir", tmp_path / "run", "--format", ",".join(FORMATS)) == 0
    said = capsys.readouterr().out
    assert said.count("the same answer for 100.0 %") == len(FORMATS) and f"model.serve(images)['{output}']" in said


def test_probes_are_swept_together_and_solved_in_closed_form(config, tmp_path):
    config.finetune.epochs = 0
    arms = [{"probe.learning_rate": rate} for rate in (0.05, 0.01)]
    members = sweeping.members(config, arms, 1, tmp_path / "sweep")
    assert sweeping.run(members, tmp_path / "sweep", Process()) == 0
    alone = run(members[0].config, tmp_path / "alone")
    together = json.loads((members[0].path / "report.json").read_text())
    metric = alone["task"]["metric"]
    assert together["chosen"]["val"][metric] == pytest.approx(alone["chosen"]["val"][metric], rel=1e-4)
    config.probe.update(optimizer="ridge", epochs=1, weight_decay=1.0)
    solved = run(config, tmp_path / "ridge")["chosen"]["val"]
    better = solved[metric] - solved["baseline"][metric]
    assert (better if metric == "accuracy" else -better) > 0


def test_the_doctor_says_how_labels_are_distributed(config, tmp_path):
    case = Case(settings.repaired(config), tmp_path / "run", 0, lambda: False)
    found = examination.examine(config, case)
    assert not [finding for _, finding in found if finding.level == "problem"], found
    texts = [finding.text for _, finding in found]
    wanted = {"lit_sides": "left 24, right 23, nowhere 13", "lit_share": "labels from 0 to 1, mean"}
    assert any(wanted[config.data.source.partition(":")[2]] in text for text in texts), texts


REFUSED = {
    "task": ("multi_label", {"task": "regression"}, "task = 'regression', allowed: 'auto' or 'multi_label'"),
    "head": ("multi_label", {"model.head": "softmax"}, "the examples have several labels"),
    "smoothing": ("regression", {"loss.label_smoothing": 0.1}, "allowed: 0.0 where a label is a number"),
    "weights": ("regression", {"loss.class_weights": "auto"}, "allowed: None where a label is a number"),
    "ridge": (
        "multi_label",
        {"probe.optimizer": "ridge", "probe.epochs": 1, "probe.weight_decay": 1.0, "loss.class_weights": "auto"},
        "allowed: None with ridge",
    ),
    "logreg": ("regression", {"probe.optimizer": "logreg", "probe.epochs": 1}, "'logreg', allowed: 'ridge' where"),
    "knn": (
        "regression",
        {"probe.optimizer": "knn", "probe.epochs": 1, "finetune.epochs": 0},
        "allowed: 'ridge' where",
    ),
    "shots": ("regression", {"data.shots": 3}, "where labels are not one class each"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("config", TASKS, indirect=True)
def test_what_its_labels_cannot_have_is_refused(config, tmp_path, case):
    task, changes, message = REFUSED[case]
    if TASKS[task] not in config.data.source:
        return
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        run(config, tmp_path / "run")


@pytest.mark.parametrize("config", ["regression"], indirect=True)
def test_labels_of_another_task_are_refused(config, tmp_path, images, capsys):
    run(config, tmp_path / "run")
    source = f"folder:{images}"
    assert call(evaluate, "--workdir", tmp_path / "run", "--source", source, "--split", "train") == DataError.exit_code
    assert "are for classification, those of the run for regression" in capsys.readouterr().err


def test_scores_of_several_labels_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    labels, logits = rng.random((40, 3)) < (0.5, 0.2, 0.0), rng.normal(size=(40, 3)).astype(np.float32)
    task = MultiLabel(SIDES, 0.0, (1.0, 1.0, 1.0))
    found, answers = task.summary(logits, labels), logits > 0
    of_class = []
    for k in range(3):
        right = sum(a and b for a, b in zip(labels[:, k], answers[:, k], strict=True))
        of_class.append(2 * right / max(labels[:, k].sum() + answers[:, k].sum(), 1))
    assert found["f1_macro"] == pytest.approx(np.mean(of_class))
    assert found["f1_micro"] == pytest.approx(2 * (labels & answers).sum() / (labels.sum() + answers.sum()))
    precisions = []
    for k in range(2):  # the third is never there
        ranked = labels[np.argsort(-logits[:, k]), k]
        at = np.flatnonzero(ranked) + 1
        precisions.append(np.mean([ranked[:n].sum() / n for n in at]))
    assert found["map"] == pytest.approx(np.mean(precisions))
    assert multi_label.by_class(labels, answers)[0].f1 == pytest.approx(of_class[0])
    drawn = rng.integers(0, 40, 40)
    counts = np.bincount(drawn, minlength=40)[None].astype(float)
    resampled = multi_label._statistics(labels, answers, logits)
    for name, value in task.summary(logits[drawn], labels[drawn]).items():
        assert resampled[name](counts)[0] == pytest.approx(value), name


def test_losses_and_scores_of_several_labels_and_of_numbers_are_those_of_their_formulas():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(5, 3)).astype(np.float32), rng.random((5, 3)) < 0.5
    task = MultiLabel(SIDES, 0.1, (1.0, 2.0, 3.0))
    p = 1 / (1 + np.exp(-logits.astype(float)))
    plain = -np.where(labels, np.log(p), np.log(1 - p))
    np.testing.assert_allclose(task.losses(jnp.asarray(logits), jnp.asarray(labels)), plain.mean(1), rtol=1e-5)
    smooth = -(labels * 0.9 + 0.05) * np.log(p) - (1 - labels * 0.9 - 0.05) * np.log(1 - p)
    weighted = (np.where(labels, [1, 2, 3], 1) * smooth).mean(1)
    np.testing.assert_allclose(task.train_losses(jnp.asarray(logits), jnp.asarray(labels)), weighted, rtol=1e-5)
    assert task.line(logits[0], labels[0])["loss"] == pytest.approx(plain[0].mean(), rel=1e-5)
    numbers, wanted = rng.normal(size=(30, 1)).astype(np.float32), rng.normal(size=30).astype(np.float32)
    errors = numbers[:, 0].astype(float) - wanted
    explained = 1 - (errors**2).mean() / wanted.astype(float).var()
    assert Regression(()).summary(numbers, wanted)["r2"] == pytest.approx(explained)
    assert np.isnan(Regression(()).summary(numbers, np.ones(30, np.float32))["r2"])
    lines = [{"id": str(i), **Regression(()).line(numbers[i], wanted[i])} for i in range(30)]
    found = Regression.with_intervals(Regression.answers(lines))
    assert found["mae"].value == pytest.approx(np.abs(errors).mean()) and found["mae"].low < found["mae"].high
    assert isinstance(found["r2"], bootstrap.Estimate)


def test_certain_answers_large_numbers_and_classes_that_are_everywhere_keep_their_figures():
    task = MultiLabel(SIDES, 0.0, (1.0, 1.0, 1.0))
    logits, label = np.asarray([[800.0, -800.0, -800.0]], np.float32), np.asarray([[False, True, False]])
    assert task.line(logits[0], label[0])["loss"] == pytest.approx(1600 / 3)
    assert task.losses(jnp.asarray(logits), jnp.asarray(label))[0] == pytest.approx(1600 / 3, rel=1e-6)
    barely = np.asarray([2e-7, -2e-7, 0.0], np.float32)
    line = {"id": "a", **task.line(barely, label[0])}
    assert line["predicted"] == [0] and task.answer(barely)["classes"] == ["left"]
    assert MultiLabel.answers([line]).predicted.tolist() == [[True, False, False]]
    labels = np.zeros((5, 3), bool)
    labels[0, 0] = True  # many a resample has no label at all
    lines = [{"id": str(i), **task.line(np.zeros(3, np.float32), row)} for i, row in enumerate(labels)]
    assert np.isfinite(MultiLabel.with_intervals(MultiLabel.answers(lines))["map"].low)
    assert task.rank({"loss": 1.0, "accuracy": 0.5, "map": float("nan")}, "accuracy") == -np.inf
    config = default()
    config.loss.class_weights = "auto"
    everywhere = np.asarray([[True, True, False], [True, False, True]])
    split = Split("train", ("a", "b"), everywhere, lambda i: b"", IMAGES, "")
    assert MultiLabel.of(config, SIDES, split).class_weights == (1.0, 1.0, 1.0)
    numbers = 1e6 + np.linspace(0, 1, 30)
    answers = (numbers + 0.05)[:, None]
    assert Regression(()).summary(answers, numbers)["r2"] == pytest.approx(1 - 0.05**2 / np.var(numbers), rel=1e-3)


def test_arms_of_several_tasks_are_not_subtracted():
    def of(task, metric, value):
        phase = {"trainable_parameters": 1, "frozen_parameters": 1}
        chosen = {"phase": "probe", "val": {metric: value}}
        found = {"chosen": chosen, "phases": {"probe": phase}, "features": {"examples_per_second": None}}
        return found | {"seconds": {"train": 1.0}, "task": {"name": task, "metric": metric}}

    arms = {"base": {0: of("classification", "accuracy", 0.9)}, "other": {0: of("regression", "mae", 12.0)}}
    base, other = table.rows(arms)
    assert base.difference == 0 and np.isnan(other.difference)
    assert table.cells(other)[2:4] == ("12.0000", "")


def test_labels_that_are_none_are_refused(prepared):
    labels = tfds_source._Labels("multi_label", SIDES, np.dtype(bool), (3,))
    np.testing.assert_array_equal(labels.array([[0, 2], []]), [[True, False, True], [False] * 3])
    with pytest.raises(DataError, match=r"labels \[1, 3\] are not all in 0..2"):
        labels.array([[0], [1, 3]])
    config = zoo.resolved(default())
    config.data.update(source="tfds:lit_share", data_dir=str(prepared))
    data = read_data(config)
    broken = dataclasses.replace(data.splits["val"], labels=np.where(np.arange(13) == 3, np.nan, 1))
    with pytest.raises(DataError, match=r"label nan of .*\[54\] is no number"):
        sources._check(dataclasses.replace(data, splits=data.splits | {"val": broken}), "tfds:lit_share")
