"""The verbs over a finished run: what it said of an image once, it says again, bit by bit."""

import contextlib
import csv
import io
import json
import shutil

import numpy as np
import pytest
from conftest import write_images
from test_train import run

from tltrain import evaluate, predict
from tltrain.errors import TerminatedError
from tltrain.experiment import evaluation, finished
from tltrain.runtime.process import Process
from tltrain.training.setup import read_data


@pytest.fixture
def done(tiny, tmp_path):
    """The workdir of a finished run with a test split."""
    tiny.data.splits = ("train[:60%]", "train[60%:80%]", "train[80%:]")
    run(tiny, tmp_path / "run")
    return tmp_path / "run"


def predictions_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def call(verb, *arguments):
    """Exit code of `verb` on a command line, and what it printed to standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = verb.main([verb.__name__, *map(str, arguments)])
    return code, errors.getvalue()


def test_predictions_are_those_the_report_counts(done):
    report = json.loads((done / "report.json").read_text())
    for split, scores in (("val", report["chosen"]["val"]), ("test", report["test"])):
        lines = [line for line in predictions_of(done / "predictions.jsonl") if line["split"] == split]
        assert len(lines) == report["num_examples"][split] == len({line["id"] for line in lines})
        assert np.mean([line["loss"] for line in lines]) == pytest.approx(scores["loss"], rel=1e-5)
        right = [np.argmax(line["probabilities"]) == line["label"] for line in lines]
        assert np.mean(right) == pytest.approx(scores["accuracy"])


@pytest.mark.optimized
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"finetune.epochs": 0},
        {"probe.epochs": 0},
        {"finetune.freeze_until": None},
        {"model.dtype": "bfloat16"},
        {"probe.epochs": 0, "finetune.train_only": "lora", "finetune.lora.targets": ("all",)},
    ],
    ids=str,
)
def test_logits_of_predict_are_bitwise_those_of_the_evaluation(tiny, tmp_path, images, monkeypatch, changes):
    tiny.update_from_flattened_dict(changes)
    seen = {}
    of_logits = evaluation.of_logits

    def keep(task, total, logits, *others):
        seen["last"] = logits
        return of_logits(task, total, logits, *others)

    monkeypatch.setattr(evaluation, "of_logits", keep)
    run(tiny, tmp_path / "run")
    expected, val = seen["last"], read_data(tiny).splits["val"]
    order = np.random.default_rng(0).permutation(val.num_examples)
    files = [images / val.ids[i] for i in order]
    code, _ = call(predict, "--workdir", tmp_path / "run", *files)
    assert code == 0
    np.testing.assert_array_equal(seen["last"], expected[order])


def test_predict_goes_on_past_a_broken_file_and_names_it(done, tmp_path, images, capsys):
    photos = write_images(tmp_path / "photos", {"some": 3})
    (photos / "some" / "broken.jpg").write_bytes(b"no image")
    table, features = tmp_path / "out.csv", tmp_path / "out.npz"
    code, errors = call(predict, "--workdir", done, photos, "--output", table, "--features", features)
    assert code == 0 and "skipped" in errors and "broken.jpg" in errors
    assert "1 of 4 images could not be read" in capsys.readouterr().out
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["file"] for row in rows] == [str(photos / "some" / f"some_{i:03}.jpg") for i in range(3)]
    assert all(float(row[f"probability of {row['class']}"]) >= 0.5 for row in rows)
    with np.load(features) as found:
        assert found["files"].tolist() == [row["file"] for row in rows]
        assert found["features"].shape == (3, 1280) and np.isfinite(found["features"]).all()


def test_a_name_with_a_line_end_is_one_cell_of_the_table(done, tmp_path, images):
    names = ["line\nend.jpg", "carriage\rreturn.jpg", 'a "quote", a comma.jpg']
    for name in names:
        shutil.copy(images / "light" / "light_000.jpg", tmp_path / name)
    table = tmp_path / "out.csv"
    assert call(predict, "--workdir", done, *(tmp_path / name for name in names), "--output", table)[0] == 0
    with table.open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [str(tmp_path / name) for name in names]


def test_predicted_classes_are_those_of_the_folders(done, images, tmp_path):
    code, _ = call(predict, "--workdir", done, images, "--output", tmp_path / "out.jsonl")
    lines = predictions_of(tmp_path / "out.jsonl")
    assert code == 0 and len(lines) == 48
    assert np.mean([line["class"] in line["file"].rpartition("/")[2] for line in lines]) > 0.9


def test_features_and_the_head_give_the_logits(done, images):
    found = finished.load(done)
    split = found.split("train")
    features = np.zeros((split.num_examples, 1280), np.float32)
    result = finished.evaluate(found, split, Process(), features)
    head = found.variables["params"]["head"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], result.logits, rtol=1e-4, atol=1e-5)


def test_evaluate_says_what_the_run_said_and_maps_classes_by_name(done, tmp_path, capsys):
    report = json.loads((done / "report.json").read_text())
    assert call(evaluate, "--workdir", done, "--output", tmp_path / "again.jsonl")[0] == 0
    assert f"accuracy {report['test']['accuracy']:.4f}, loss {report['test']['loss']:.4f}" in capsys.readouterr().out
    before = [line for line in predictions_of(done / "predictions.jsonl") if line["split"] == "test"]
    again = predictions_of(tmp_path / "again.jsonl")
    assert [line["probabilities"] for line in again] == [line["probabilities"] for line in before]
    light_alone = write_images(tmp_path / "light_alone", {"light": 4})
    call(
        evaluate, "--workdir", done, "--source", f"folder:{light_alone}", "--split", "train", "--output", tmp_path / "x"
    )
    assert {line["label"] for line in predictions_of(tmp_path / "x")} == {1}


MISTAKES = {
    "no workdir": (predict, ["--workdir", "{tmp}/none", "{images}"], 6, "is no workdir"),
    "no file": (predict, ["--workdir", "{run}", "{tmp}/none.jpg"], 4, "no file or folder at"),
    "no images": (predict, ["--workdir", "{run}", "{run}"], 4, "no images below"),
    "no reader": (predict, ["--workdir", "{run}", "{run}/config.json"], 4, "none of 1 images can be read"),
    "suffix": (predict, ["--workdir", "{run}", "{images}", "--output", "{tmp}/a.txt"], 2, "ends in .csv or .jsonl"),
    "folder": (predict, ["--workdir", "{run}", "{images}", "--output", "{tmp}/no/a.csv"], 2, "no folder for"),
    "split": (evaluate, ["--workdir", "{run}", "--split", "train[:x]"], 4, "cannot be read"),
    "which split": (evaluate, ["--workdir", "{run}", "--source", "folder:{images}"], 2, "--source without --split"),
    "input": (
        predict,
        ["--workdir", "{tmp}/none", "{tmp}/a.csv", "--output", "{tmp}/a.csv"],
        2,
        "would be overwritten",
    ),
    "output": (
        *(predict, ["--workdir", "{tmp}/none", "{images}", "--output", "{tmp}/a.csv", "--features", "{tmp}/a.csv"]),
        *(2, "would be overwritten"),
    ),
    "empty split": (evaluate, ["--workdir", "{run}", "--split", ""], 2, "argument --split: it is empty"),
    "no folder": (evaluate, ["--workdir", "{tmp}/none", "--output", "{tmp}/no/a.jsonl"], 2, "no folder for"),
    "a folder": (evaluate, ["--workdir", "{tmp}/none", "--output", "{tmp}"], 2, "is a folder"),
    "features": (predict, ["--workdir", "{tmp}/none", "{images}", "--features", "{tmp}"], 2, "is a folder"),
    "class": (evaluate, ["--workdir", "{run}", "--source", "folder:{other}", "--split", "train"], 4, "grey"),
}


def test_a_mistake_is_one_line_with_its_exit_code(done, images, tmp_path, subtests):
    other = write_images(tmp_path / "other", {"grey": 2})
    for name, (verb, arguments, expected, message) in MISTAKES.items():
        places = {"run": done, "tmp": tmp_path, "images": images, "other": other}
        with subtests.test(name):
            code, errors = call(verb, *(argument.format(**places) for argument in arguments))
            assert (code, len(errors.splitlines()[-1:])) == (expected, 1)
            assert errors.splitlines()[-1].startswith("tltrain: ") and message in errors.splitlines()[-1]


def test_a_stopped_evaluation_writes_nothing(done):
    found = finished.load(done)
    split = found.split(found.config.data.splits[1])
    with pytest.raises(TerminatedError, match="nothing was written"):
        finished.evaluate(found, split, Process(asked=lambda: True))
