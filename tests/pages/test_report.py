"""The pages of finished runs: everything is there, foreign text is text, and it looks right in a browser."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import BROWSER, IMAGES, TINY, tiny_config, write_images
from test_train import run

from tltrain import report
from tltrain.config import default
from tltrain.data import sources
from tltrain.data.split import Data, Split
from tltrain.errors import WorkdirError
from tltrain.experiment import evaluation
from tltrain.experiment import report as report_of
from tltrain.models import zoo
from tltrain.pages import compare, predictions, run_page, thumbnails
from tltrain.pages.predictions import read_predictions
from tltrain.runtime import record
from tltrain.training import metrics, scores
from tltrain.training.setup import Setup
from tltrain.training.tasks import choose
from tltrain.training.tasks.classification import Classification

CLASSES = ("<b>&\"x'", "dark", "name_of_a_class_that_is_long_and_has_no_place_to_break_it")
SECTIONS = ("curves", "metrics", "val", "test", "trainable", "throughput", "config", "environment")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same 60 images of three classes, one of which has a name that would be a tag."""
    folder = tmp_path_factory.mktemp("report")
    images = write_images(folder / "images", dict.fromkeys(CLASSES, 20), size=(40, 60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.BACKBONES, "tiny", TINY)
        config = tiny_config(images, folder / "features")
        config.data.splits = ("train[:40%]", "train[40%:70%]", "train[70%:]")
        run(config, folder / "a")
        config.update_from_flattened_dict({"probe.learning_rate": 0.1, "finetune.epochs": 0})
        run(config, folder / "b")
    widen(shutil.copytree(folder / "a", folder / "many"), 25)
    return folder


def widen(workdir, num_classes):
    """Adds classes to the record of a run that no example is of."""
    content = json.loads((workdir / "report.json").read_text())
    added = [f"{CLASSES[-1]}_{i}" for i in range(3, num_classes)]
    content["class_names"] += added
    for counts in content["class_counts"].values():
        counts |= dict.fromkeys(added, 0)
    (workdir / "report.json").write_text(json.dumps(content))
    lines = [json.loads(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()]
    for line in lines:
        line["probabilities"] += [0.0] * len(added)
        if num_classes > scores.MOST_SHOWN:
            line["classes"] = sorted(range(3), key=lambda i: -line["probabilities"][i])
            line["probabilities"] = sorted(line["probabilities"][:3], reverse=True)
    (workdir / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seal(workdir)


def seal(workdir):
    """Takes the files of a run for what it wrote."""
    content = record.sealed(workdir, json.loads((workdir / "report.json").read_text()))
    (workdir / "report.json").write_text(json.dumps(content))


class Elements(HTMLParser):
    """The start tags of a page, and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def main(*arguments):
    return report.main(["report", *map(str, arguments)])


def no_data():
    raise AssertionError("the data is not needed: all pictures are in the cache")


def test_a_run_ends_with_a_page_that_has_every_section_and_figure(runs):
    page = Elements(runs / "a" / "report.html")
    assert [section["id"] for section in page.of("section")] == list(SECTIONS)
    assert len(page.of("svg")) == 4, "loss, accuracy, and the reliability of val and test"
    content = json.loads((runs / "a" / "report.json").read_text())
    for split, found in (("val", content["chosen"]["val"]), ("test", content["test"])):
        made = scores.with_intervals(read_predictions(runs / "a", "classification")[split])
        assert f"{100 * found['accuracy']:.2f} %" in page.text
        assert f"{100 * made['ece'].low:.2f} % to {100 * made['ece'].high:.2f} %" in page.text
        assert str(sum(map(sum, found["confusion"]))) in page.text
    assert f"{content['phases']['finetune']['trainable_parameters']:,}" in page.text
    assert "seed" in page.text and "jaxlib" in page.text


def test_names_of_classes_and_files_are_text_and_never_tags(runs):
    page = Elements(runs / "a" / "report.html")
    assert not page.of("b") or all("x" not in attributes for attributes in page.of("b"))
    assert CLASSES[0] in page.text
    assert "<b>&" not in (runs / "a" / "report.html").read_text()


def test_mistakes_are_shown_as_pictures_with_name_classes_and_probability(runs):
    page = Elements(runs / "a" / "report.html")
    found = read_predictions(runs / "a", "classification")
    wrong = [(split, i) for split, of in found.items() for i in scores.mistakes(of, 24)]
    pictures = page.of("img")
    assert len(pictures) == len(wrong) > 0
    for (split, i), picture in zip(wrong, pictures, strict=True):
        of = found[split]
        assert picture["alt"].startswith(of.ids[i]) and CLASSES[of.labels[i]] in picture["alt"]
        assert picture["src"].startswith("data:image/jpeg;base64,")
        assert f"{100 * of.confidence[i]:.2f} %, true: {CLASSES[of.labels[i]]}" in page.text


def test_of_many_classes_the_confusions_are_listed_and_the_hardest_class_comes_first(runs):
    assert main(runs / "many") == 0
    text = (runs / "many" / "report.html").read_text()
    assert "the most frequent" in text and "Rows are the true classes" not in text
    pattern = r'aria-label="Scores by class of val".*?<tbody>\s*<tr><th scope="row">(.*?)</th>'
    found = read_predictions(runs / "many", "classification")["val"]
    made = scores.by_class(found.labels, found.predicted, 25)[:3]
    hardest = CLASSES[min(range(3), key=lambda i: made[i].f1)]
    assert html.unescape(re.search(pattern, text, re.DOTALL)[1]) == hardest


def test_the_page_of_ten_thousand_classes_shows_those_that_matter(runs, tmp_path):
    few, many = runs / "many", shutil.copytree(runs / "a", tmp_path / "most")
    widen(many, 10_000)
    assert main(few) == main(many) == 0
    page = Elements(many / "report.html")
    assert "9,900 other classes are not shown" in page.text
    assert (many / "report.html").stat().st_size < (few / "report.html").stat().st_size + 100_000
    for split, found in read_predictions(few, "classification").items():
        np.testing.assert_array_equal(read_predictions(many, "classification")[split].predicted, found.predicted)
        np.testing.assert_array_equal(read_predictions(many, "classification")[split].confidence, found.confidence)


def test_the_record_of_ten_thousand_classes_is_small_and_exact():
    rng = np.random.default_rng(0)
    names = tuple(f"a class with a name of its own, {i:05}" for i in range(10_000))
    labels = rng.integers(0, 10_000, 3_000).astype(np.int32)
    split = Split("all", tuple(map(str, range(3_000))), labels, no_data, IMAGES, "")
    logits = rng.normal(size=(3_000, 10_000)).astype(np.float32)
    logits[np.arange(0, 3_000, 2), labels[::2]] = 9
    found = {"val": evaluation.Evaluation({"accuracy": 0.5}, logits, np.arange(3_000) != 7)}
    data = Data({"train": split, "val": split}, names)
    task = choose.of(default(), data)
    measured = evaluation.in_detail(task, data.splits, found)
    entry = {"epoch": 1, "step": 1, "train": {"loss": 0.1}, "val": {"accuracy": 0.5}}
    setup = Setup(default(), data, task, None, None)
    made = report_of.of_run(setup, {"probe": {"best": entry}}, "probe", {}, measured, {}, None, {})
    assert len(json.dumps(made, indent=2)) < 5_000_000
    lines = list(evaluation.predictions(task, data.splits, found))
    assert len(lines) == 2_999 and max(len(json.dumps(line)) for line in lines) < 500
    for line in lines[:50]:
        exact = metrics.probabilities(logits[[int(line["id"])]])[0]
        np.testing.assert_allclose(line["probabilities"], np.sort(exact)[::-1][:10], rtol=1e-5)
        np.testing.assert_allclose(exact[line["classes"]], line["probabilities"], rtol=1e-5)
        assert line["loss"] == pytest.approx(-np.log(exact[line["label"]]), rel=1e-5)


def test_keys_that_differ_from_the_default_are_marked(runs):
    text = (runs / "a" / "report.html").read_text()
    changed = re.findall(r'<div class="changed"><dt><code>(.*?)</code>', text)
    assert {"model.backbone", "batch_size", "data.image_size"} <= set(changed)
    assert "probe.learning_rate" not in changed and "default <code>32</code>" in text


def test_the_page_is_written_again_from_the_record_alone_and_is_the_same(runs, tmp_path, capsys):
    copy = shutil.copytree(
        runs / "a", tmp_path / runs.name / "a", ignore=shutil.ignore_patterns("checkpoints", "*.html")
    )
    assert main(copy) == 0
    assert (copy / "report.html").read_bytes() == (runs / "a" / "report.html").read_bytes()
    assert f"{copy / 'report.html'}" in capsys.readouterr().out
    run_page.write(copy, no_data)


def test_a_picture_that_is_gone_is_named_with_words(runs, tmp_path, monkeypatch):
    copy = shutil.copytree(runs / "a", tmp_path / "a")
    monkeypatch.setitem(zoo.BACKBONES, "tiny", TINY)
    monkeypatch.setenv("TLTRAIN_CACHE", str(tmp_path / "cache"))
    config = json.loads((copy / "config.json").read_text())
    config["data"]["source"] = f"folder:{tmp_path / 'nowhere'}"
    (copy / "config.json").write_text(json.dumps(config))
    seal(copy)
    assert main(copy) == 0
    page = Elements(copy / "report.html")
    found = read_predictions(copy, "classification")["val"]
    assert not page.of("img") and "It is gone" in page.text
    assert found.ids[scores.mistakes(found, 1)[0]] in page.text


def test_pictures_are_kept_with_those_a_next_run_may_want(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("TLTRAIN_CACHE", str(tmp_path))
    images = shutil.copytree(runs / "images", tmp_path / "images")
    split = sources.load(tiny_config(images, tmp_path), IMAGES).splits["val"]
    first, second, third, lost, *_ = split.ids
    (images / lost).unlink()
    found = thumbnails.of(split.fingerprint, [first, lost], [second], lambda: split)
    assert found[first].startswith(b"\xff\xd8") and found[lost] is None
    assert thumbnails.of(split.fingerprint, [second], [], no_data)[second]
    with pytest.raises(AssertionError):
        thumbnails.of(split.fingerprint, [third], [], no_data)
    assert thumbnails.of("data that has changed", [first], [], lambda: split) == {first: None}


def test_an_error_in_the_page_comes_after_the_record_and_says_so(runs, tmp_path):
    copy = shutil.copytree(runs / "a", tmp_path / "a")
    (copy / "predictions.jsonl").write_text("broken")
    with pytest.raises(WorkdirError, match=r"the run is finished, its page is not; .*report.json is complete"):
        run_page.end_run(copy, no_data)


def test_runs_side_by_side_are_paired_by_example(runs, capsys):
    assert main(runs / "a", runs / "b") == 0
    page, shown = Elements(runs / "runs.html"), capsys.readouterr().out
    a, b = (read_predictions(runs / name, "classification")["test"] for name in "ab")
    difference = 100 * (b.correct.mean() - a.correct.mean())
    assert f"{difference:+.2f}" in page.text and f"{difference:+.2f}" in shown
    assert [link["href"] for link in page.of("a")] == ["a/report.html", "b/report.html"]
    assert "probe.learning_rate" in page.text and "model.backbone" not in page.text
    assert str(runs / "runs.html") in shown


def test_a_paired_difference_is_over_shared_examples_and_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.8
    second = first ^ (rng.random(400) < 0.03)
    ids = tuple(map(str, range(400)))

    def predictions(ids, correct):
        return scores.Predictions.of(
            ids, (~correct).astype(int), np.tile([0.9, 0.1], (len(ids), 1)), np.zeros(len(ids))
        )

    base = predictions(ids, first)
    found, shared = compare.paired_difference(predictions(ids[::-1][:300], second[::-1][:300]), base, Classification)
    assert shared == 300 and found.value == pytest.approx(second[100:].mean() - first[100:].mean())
    alone = scores.with_intervals(base)["accuracy"]
    assert found.high - found.low < (alone.high - alone.low) / 1.5
    assert compare.paired_difference(predictions(("x",), first[:1]), base, Classification) == (None, 0)


@pytest.mark.parametrize(
    "arguments", [["{folder}"], ["{folder}/nowhere", "{folder}/a"], ["{folder}/a", "--output=x.html"]]
)
def test_bad_input_is_one_line_and_an_exit_code(runs, arguments, capsys):
    code = main(*(argument.format(folder=runs) for argument in arguments))
    error = capsys.readouterr().err
    assert code == (2 if "--output=x.html" in arguments else 6)
    assert error.startswith("tltrain: ") and error.count("\n") == 1


def test_the_verb_runs_from_the_command_line(runs, tmp_path):
    command = [sys.executable, "-m", "tltrain.report", runs / "a", runs / "b", "--output", tmp_path / "both.html"]
    environment = os.environ | {"PYTHONPATH": str(Path(report.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert Elements(tmp_path / "both.html").of("table")


def test_predictions_are_read_a_part_at_a_time(runs, monkeypatch):
    whole = read_predictions(runs / "a", "classification")
    monkeypatch.setattr(predictions, "_CHUNK", 4)
    for split, found in read_predictions(runs / "a", "classification").items():
        assert list(found.ids) == list(whole[split].ids) and found.log_odds is None
        for part, of_whole in zip(found[1:5], whole[split][1:5], strict=True):
            assert part.dtype == of_whole.dtype and np.array_equal(part, of_whole)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which(BROWSER), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["a/report.html", "many/report.html", "runs.html"])
def test_a_page_is_sound_in_a_browser(runs, browser, name, width, scheme):
    assert main(runs / "a", runs / "b") == main(runs / "many") == 0
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((runs / name).as_uri())
    assert not problems
    assert [url for url in requests if not url.startswith("data:")] == [(runs / name).as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.images.length > 0") == (name != "runs.html")
    sections = page.evaluate("[...document.querySelectorAll('section')].filter(s => s.offsetHeight > 0).map(s => s.id)")
    assert sections == (["runs", "curves", "config"] if name == "runs.html" else list(SECTIONS))
    assert (runs / name).stat().st_size < 2_000_000
    page.close()
