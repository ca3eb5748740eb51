"""Every verb on a finished run of texts, whose weights are gone by then."""

import io
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from test_train import run

from tltrain import evaluate, export, predict, report
from tltrain.checks import examination, settings
from tltrain.checks.case import Case
from tltrain.exports.formats import FORMATS


def call(verb, *arguments):
    return verb.main(["tltrain", *map(str, arguments)])


@pytest.fixture
def finished(tiny_text, tmp_path):
    run(tiny_text, tmp_path / "run")
    shutil.move(tiny_text.model.weights.removeprefix("random:"), tmp_path / "gone")
    return tmp_path / "run"


def predictions(finished, tmp_path, *arguments):
    assert call(predict, "--workdir", finished, *arguments, "--output", tmp_path / "out.jsonl") == 0
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_rows_of_a_table_get_the_probabilities_of_the_run(finished, tiny_text, tmp_path):
    table = tiny_text.data.source.removeprefix("table:")
    found = {line["file"]: [*line["probabilities"].values()] for line in predictions(finished, tmp_path, table)}
    known = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    assert known and len(found) == 40
    for line in known:
        assert found[line["id"]] == line["probabilities"], line["id"]


def test_rows_of_two_tables_of_one_name_are_all_there(finished, tiny_text, tmp_path):
    table = Path(tiny_text.data.source.removeprefix("table:"))
    (tmp_path / "other").mkdir()
    other = Path(shutil.copy(table, tmp_path / "other"))
    found = [line["file"] for line in predictions(finished, tmp_path, table, other, table)]
    assert found == [f"{path}:{row}" for path in (table, other) for row in range(2, 42)]


def test_lines_of_standard_input_are_texts(finished, tmp_path, monkeypatch):
    lines = types.SimpleNamespace(buffer=io.BytesIO(b"the good film\n\nthe bad film\r\n"))
    monkeypatch.setattr(sys, "stdin", lines)
    assert [line["file"] for line in predictions(finished, tmp_path, "-")] == ["line 1", "line 2", "line 3"]


def test_lines_that_are_not_utf8_are_named(finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"good\nb\xffd\n")))
    assert call(predict, "--workdir", finished, "-") == 4
    assert "line 2 of standard input is not UTF-8" in capsys.readouterr().err


def test_evaluate_and_report_need_no_weights(finished, capsys):
    assert call(evaluate, "--workdir", finished) == 0
    assert call(report, finished) == 0
    assert "on train[75%:]: 10 texts" in capsys.readouterr().out
    assert '<span class="text">' in (finished / "report.html").read_text()


def test_exports_take_ids_mask_and_types_of_any_length_and_say_how(finished, tmp_path, capsys):
    formats = ("stablehlo", "keras")
    assert call(export, "--workdir", finished, "--format", ",".join(formats), "--output", tmp_path / "export") == 0
    beside = {"class_names.json", "tokenizer.json"}
    assert {path.name for path in (tmp_path / "export").iterdir()} == {FORMATS[name].file for name in formats} | beside
    said = capsys.readouterr().out
    assert said.count("on 10 texts of val the same answer for 100.0 %") == 2 and "images" not in said
    names = ("input_ids", "attention_mask", "token_type_ids")
    by_name = ", ".join(f"'{name}': {name}" for name in names)
    assert f"model.call({', '.join(names)})\n" in said and f"model({{{by_name}}})\n" in said
    ids = np.asarray([[2, 5, 6, 3], [2, 7, 3, 9]], np.int32)
    mask = np.asarray([[1, 1, 1, 1], [1, 1, 1, 0]], np.int32)
    for name in formats:
        answers = FORMATS[name].load(tmp_path / "export" / FORMATS[name].file)
        padded = answers(dict(zip(names, (ids, mask, ids * 0), strict=True)))
        alone = answers(dict(zip(names, (ids[1:, :3], mask[1:, :3], ids[1:, :3] * 0), strict=True)))
        np.testing.assert_allclose(padded[1], alone[0], atol=1e-6)


def findings(config, tmp_path):
    case = Case(settings.repaired(config), tmp_path / "doctor", 0, lambda: False)
    return [(finding.level, finding.text) for _, finding in examination.examine(config, case)]


def test_texts_that_differ_in_case_alone_are_found_across_splits(tiny_text, tmp_path):
    table = tmp_path / "texts" / "reviews.csv"
    header, *rows = table.read_text().splitlines()
    parts = [row.rsplit(",", 1) for row in rows]
    table.write_text("\n".join([header, *rows, *(f"{text.upper()},{label}" for text, label in parts)]))
    found = [text for level, text in findings(tiny_text, tmp_path) if level == "problem"]
    assert any("texts in two splits that differ in case or spaces alone" in text for text in found), found


def test_the_doctor_looks_at_lengths_words_and_vocabulary(tiny_text, tmp_path):
    tiny_text.data.max_tokens = 8
    found = findings(tiny_text, tmp_path)
    said = " ".join(text for _, text in found)
    assert not [text for level, text in found if level == "problem"] and "image" not in said
    for part in (
        "tokens a text: ",
        "are longer than data.max_tokens = 8: cut",
        "in no vocabulary",
        "the tokenizer knows",
    ):
        assert part in said, part
