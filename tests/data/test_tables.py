"""Whatever format a table has, its rows are the examples; what is none is refused in a line that names its row."""

import csv
import json
import random
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import IMAGES, bytes_each, tiny_config
from test_kinds import Dense, Numbers
from test_train import run

from tltrain import config as config_lib
from tltrain import evaluate
from tltrain.data import identity, sources, table_reader
from tltrain.errors import ConfigError, DataError
from tltrain.models import zoo
from tltrain.training.setup import read_data

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
TEXTS = Numbers(8)  # a kind that is made of texts


def write(path, rows, columns=("text", "label")):
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([columns, *rows])
    return path


def load(path, kind=TEXTS, task="auto", **changes):
    config = config_lib.default()
    config.task = task
    config.data.update(source=f"table:{path}", **changes)
    config = sources.resolved(config)
    return sources.load(config, kind)


def contents(split):
    return [split.read(i) for i in range(len(split.ids))]


def examples(data):
    """Of each split the contents and the labels in words."""
    names = np.asarray(data.class_names)
    return {role: (contents(split), names[split.labels].tolist()) for role, split in data.splits.items()}


def words(count, labels=("good", "bad"), seed=0):
    rng = random.Random(seed)
    return [(f"{i} {rng.random():.6f}", labels[i % len(labels)]) for i in range(count)]


ODD = [
    ("a,b", "x"),
    ('"quoted"', "y"),
    ("two\nlines\r\nthree\u2028", "x"),
    ("", "y"),
    ("tab\t漢字 🙂", "x"),
    ("'", "y"),
]
LABELS = {
    "strings": (["b", "a", "b", "a", "b", "a"], ("a", "b")),
    "integers": ([10, 9, 10, 9, -1, 9], ("-1", "9", "10")),
    "whole floats": ([1.0, 0.0, 1.0, 0.0, 1.0, 0.0], ("0", "1")),
    "booleans": ([True, False, True, False, True, False], ("False", "True")),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_data(suffix, labels, tmp_path):
    cells, names = LABELS[labels]
    rows = [(text, cell) for (text, _), cell in zip(ODD, cells, strict=True)]
    both = ("train", "train[:100%]")  # two that overlap, of which sources tells, so each by itself
    found = []
    for name in (f"a{suffix}", "a.jsonl"):
        path = write(tmp_path / name, rows)
        data = sources._read(config_of(path, both).data, TEXTS, "auto")
        assert data.class_names == names
        found.append(examples(data))
        first = 2 if path.suffix in (".csv", ".tsv") else 1
        assert tuple(data.splits["train"].ids) == tuple(f"{name}:{i}" for i in range(first, first + 6))
    assert found[0] == found[1] and found[0]["train"][0] == [text.encode() for text, _ in ODD]


def config_of(path, splits, **changes):
    config = config_lib.default()
    config.data.update(source=f"table:{path}", splits=splits, **changes)
    return config


def test_a_mark_of_utf8_and_empty_lines_are_no_part_of_a_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\r\n\r\n"1\n2",x\r\n3,y\r\n\r\n4,x\r\n5,y\r\n')
    data = load(path, splits=("train[:50%]", "train[50%:]"))
    ids = sorted(i for split in data.splits.values() for i in split.ids)
    assert ids == ["a.csv:3", "a.csv:4", "a.csv:6", "a.csv:7"], "as a spreadsheet shows them"


@pytest.mark.parametrize("suffix", FORMATS)
def test_two_columns_are_a_json_list(suffix, tmp_path):
    path = write(tmp_path / f"a{suffix}", [("é", '"', "x"), ("1", "", "y")], ("one", "two", "label"))
    data = sources._read(config_of(path, ("train",), text=("one", "two")).data, TEXTS, "auto")
    assert contents(data.splits["train"]) == ['["é", "\\""]'.encode(), b'["1", ""]']


def test_percents_follow_from_the_contents_and_part_no_equal_texts(tmp_path):
    rows = words(400) + words(60) * 2 + [("the same", "good"), ("the same", "bad")] * 20
    splits, found = ("train[:70%]", "train[70%:85%]", "train[85%:]"), []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        data = load(write(tmp_path / f"{seed}.csv", rows), splits=splits)
        assert sorted(i for split in data.splits.values() for i in split.ids) == sorted(
            f"{seed}.csv:{i + 2}" for i in range(560)
        )
        texts = [sorted(contents(split)) for split in data.splits.values()]
        found.append(texts)
        assert not any(set(one) & set(other) for i, one in enumerate(texts) for other in texts[:i])
    assert found[0] == found[1] == found[2]
    for share, split in zip((0.7, 0.15, 0.15), data.splits.values(), strict=True):
        np.testing.assert_allclose(split.class_counts(2) / 280, share, atol=0.08)


def test_a_column_divides_a_table_and_rows_of_no_named_split_are_left_out(tmp_path):
    rows = [(*row, split) for split in ("train", "validation", "", "other") for row in words(6, seed=len(split))]
    path = write(
        tmp_path / "a.csv",
        [(*row[:1], "", row[2]) if row[2] == "other" else row for row in rows],
        ("text", "label", "part"),
    )
    data = load(path, split="part")
    assert [split.expression for split in data.splits.values()] == ["train", "val"], "as they stand by default"
    assert tuple(data.splits["val"].ids) == tuple(f"a.csv:{i}" for i in range(8, 14))
    assert data.left_out == {"rows of other splits": tuple(f"a.csv:{i}" for i in range(14, 26))}
    data = load(path, split="part", splits=("validation[:50%]", "validation[50%:]", "train"))
    assert [split.num_examples for split in data.splits.values()] == [4, 2, 6]


def test_the_tables_of_a_folder_are_splits_by_their_names(tmp_path):
    for name in ("train.csv", "dev.jsonl", "Testing.parquet", "extra.tsv"):
        write(tmp_path / name, words(6, seed=len(name)))
    (tmp_path / "README.md").touch()
    data = load(tmp_path)
    assert {role: split.ids[0] for role, split in data.splits.items()} == {
        "train": "train.csv:2",
        "val": "dev.jsonl:1",
        "test": "Testing.parquet:1",
    }
    assert data.left_out == {"tables beside the splits": ("extra.tsv",), "files beside the tables": ("README.md",)}
    assert load(tmp_path, splits=("train", "extra")).splits["val"].num_examples == 6
    with pytest.raises(DataError, match=r"no split 'tset'; .* has Testing, dev, extra, train; change data.splits"):
        load(tmp_path, splits=("train", "tset"))
    write(tmp_path / "dev.csv", words(6))
    with pytest.raises(DataError, match="are both a split 'dev'"):
        load(tmp_path)


GOOD = b"text,label\n1,x\n2,y\n"
BAD = {  # name of the file, its content, keys of the group data, what is said
    "no file": ("a.csv", None, {}, "no table at .*a.csv"),
    "suffix": ("a.xlsx", GOOD, {}, "a.xlsx is no table; .*parquet"),
    "empty": ("a.csv", b"", {}, "a.csv has no rows"),
    "header alone": ("a.csv", b"text,label\n", {}, "a.csv has no rows"),
    "no column": ("a.csv", GOOD, {"text": ("txt",)}, "'txt', which data.text names; .*text, label; did you"),
    "no label": ("a.csv", b"text,y\n1,x\n", {}, "no column 'label', which data.label names; .*text, y; set data.label"),
    "no splits": ("a.csv", GOOD, {"split": "part"}, "no column 'part', which data.split names"),
    "two columns": ("a.csv", b"text,text,label\n1,2,x\n", {}, "a.csv has 2 columns 'text'"),
    "ragged": ("a.csv", b"text,label\n1,x\n1,2,x\n", {}, "a.csv:3 has 3 cells, its header 2"),
    "short": ("a.tsv", b"text\tlabel\n1\tx\n1\n", {}, "a.tsv:3 has 1 cells, its header 2"),
    "open quote": ("a.csv", b'text,label\n1,x\n"2,y\n3,x\n', {}, "a.csv:3 is no record; .*quotes"),
    "quote inside": ("a.csv", b'text,label\n1,x\n"2"2,y\n', {}, "a.csv:3 is no record"),
    "latin-1": ("a.csv", b"text,label\n1,x\n\xe9,y\n", {}, "byte 0xe9 in line 3, 15 bytes from the start"),
    "utf-16": ("a.csv", "text,label\n1,x\n".encode("utf-16"), {}, "byte 0xff in line 1"),
    "empty label": ("a.csv", b"text,label\n1,x\n2,\n", {}, "a.csv:3 has no label"),
    "nan label": ("a.jsonl", b'{"text": "1", "label": 1}\n{"text": "2", "label": NaN}\n', {}, "a.jsonl:2 has no label"),
    "null label": ("a.jsonl", b'{"text": "", "label": 1}\n\n{"text": "", "label": null}', {}, "a.jsonl:3 has no label"),
    "null text": ("a.jsonl", b'{"text": null, "label": 1}', {}, "a.jsonl:1 has no 'text'"),
    "number as text": ("a.jsonl", b'{"text": 5, "label": 1}', {}, "'text' of a.jsonl:1 is 5, no string"),
    "no key": ("a.jsonl", b'{"text": "", "label": 1}\n{"text": ""}\n', {}, "a.jsonl:2 has no column 'label'"),
    "no json": ("a.jsonl", b'{"text": "", "label": 1}\n{"text": }\n', {}, "a.jsonl:2 is no JSON; "),
    "no object": ("a.jsonl", b'[{"text": "", "label": 1}]', {}, "a.jsonl:1 is no JSON object"),
    "half a character": ("a.jsonl", b'{"text": "\\ud800", "label": 1}', {}, "a.jsonl:1 is not UTF-8"),
    "list and none": ("a.jsonl", b'{"text": "", "label": ["a"]}\n{"text": "", "label": 1}', {}, "a.jsonl:2 is no list"),
    "object": ("a.jsonl", b'{"text": "", "label": {"a": 1}}', {}, "label .* of a.jsonl:1 is no string, number or list"),
    "fractions": ("a.csv", b"text,label\n1,1\n2,2.5\n", {}, "label 2.5 of a.csv:3 is no .*task = 'regression'"),
    "parquet": ("a.parquet", b"PAR1 and no more", {}, "cannot read the table .*a.parquet"),
    "other split": ("a.csv", GOOD, {"splits": ("train", "val")}, "no split 'val'; .* has train; .*data.split"),
    "one class": ("a.csv", b"text,label\n1,x\n2,x\n", {}, "has 1 class; .*name another column by data.label"),
    "unknown class": ("a.csv", b"text,label,s\n1,x,train\n2,y,val\n", {"split": "s"}, "a.csv:3 has the class 'y'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_table_is_refused_in_a_line_that_names_the_row(case, tmp_path):
    name, content, changes, message = BAD[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / name, **changes)
    line = str(caught.value)
    assert "\n" not in line and line.count("; ") >= 2, "what, where, what to do"


def test_a_table_that_does_not_fit_the_memory_is_refused(tmp_path, monkeypatch):
    for path in (write(tmp_path / "a.csv", words(20)), write(tmp_path / "a.parquet", words(20))):
        monkeypatch.setattr(table_reader, "free_memory", lambda: 10)
        with pytest.raises(DataError, match=rf"{path.name} takes about 0.0 GiB of memory, .* are free; at .*; take a"):
            load(path)


def test_text_in_parquet_that_is_not_utf8_is_named_by_its_row(tmp_path):
    broken = pa.array([b"1", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": broken, "label": ["x", "y"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet:2 is not UTF-8; .*save it as UTF-8"):
        load(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", FORMATS)
def test_numbers_are_labels_where_the_config_says_so(suffix, tmp_path):
    path = write(tmp_path / f"a{suffix}", [(f"{i}", i / 2) for i in range(10)])
    data = load(path, task="regression")
    assert data.task == "regression" and data.class_names == () and data.splits["train"].labels.dtype == np.float32
    for split in data.splits.values():
        assert [float(text) / 2 for text in contents(split)] == split.labels.tolist()
    for cell in (float("inf"), 1e39):
        write(path, [("1", 0.5), ("2", cell)])
        with pytest.raises(DataError, match=rf"label .* of a{suffix}:\d is no finite number"):
            load(path, task="regression")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_are_several_labels_at_once(suffix, tmp_path):
    rows = [(str(i), [label for label in (2, 10) if i % (label + 1)]) for i in range(40)]
    data = load(write(tmp_path / f"a{suffix}", rows))
    assert data.task == "multi_label" and data.class_names == ("2", "10")
    for split in data.splits.values():
        wanted = [[bool(int(text) % 3), bool(int(text) % 11)] for text in contents(split)]
        np.testing.assert_array_equal(split.labels, wanted)


@pytest.mark.parametrize("cell", ["text", "label"])
def test_a_changed_cell_is_noticed(cell, tmp_path):
    rows = words(40)
    path = write(tmp_path / "a.csv", rows)
    before = identity.of(load(path), None)
    identity.check(before, identity.of(load(path), None), tmp_path)
    rows[7] = ("other", rows[7][1]) if cell == "text" else (rows[7][0], "good")
    write(path, rows)
    with pytest.raises(DataError, match=r"a run on other inputs; .*train: 1 changed \(a.csv\).*put them back"):
        identity.check(before, identity.of(load(path), None), tmp_path)


@pytest.fixture
def photos(images, tiny, tmp_path):
    """A table of the images of `tiny`, one of which is named by its whole path, and its config."""
    rows = [(f"{path.parent.name}/{path.name}", path.parent.name) for path in sorted(images.rglob("*.jpg"))]
    rows[0] = (str(images / rows[0][0]), rows[0][1])
    (tmp_path / "data").symlink_to(images)
    path = write(
        tmp_path / "photos.csv",
        [(f"data/{name}" if name[0] != "/" else name, c) for name, c in rows],
        ("file", "class"),
    )
    config = tiny_config(images, tmp_path / "features")
    config.data.update(source=f"table:{path}", label="class")
    return config, path


def test_a_table_of_images_is_trained_as_the_folder_of_them(photos, tiny, tmp_path, capsys):
    config, path = photos
    found, expected = run(config, tmp_path / "table"), run(tiny, tmp_path / "folder")
    for one in (found, expected):
        assert one["class_counts"] == {"train": {"dark": 14, "light": 22}, "val": {"dark": 4, "light": 8}}
    assert found["chosen"]["val"].keys() == expected["chosen"]["val"].keys() and found["kind"] == expected["kind"]
    assert found["chosen"]["val"]["accuracy"] > 0.6
    line = ["evaluate", "--workdir", str(tmp_path / "table"), "--split", "train", "--source", f"table:{path}"]
    assert evaluate.main(line) == 0 and "48 images" in capsys.readouterr().out
    data = read_data(sources.resolved(zoo.resolved(config)))
    files = {file for split in data.splits.values() for file in split.files()}
    assert {"photos.csv", "data/dark/dark_001.jpg"} <= files


def test_a_file_that_a_table_names_and_is_not_there_counts_as_unreadable_and_an_empty_name_is_refused(photos, tmp_path):
    config, path = photos
    path.write_text(path.read_text().replace("dark_001", "gone"))
    config.data.max_corrupt = 0.1
    config.finetune.epochs = 0
    assert sum(run(config, tmp_path / "run")["num_corrupt"].values()) == 1
    path.write_text(re.sub("data/light/light_000.jpg", "", path.read_text()))
    with pytest.raises(DataError, match=r"'file' of photos.csv:20 is ''; it names no file; correct it"):
        load(path, IMAGES, label="class")


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_table_of_texts_goes_the_whole_way(task, tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.BACKBONES, "dense", Dense)
    rng = np.random.default_rng(0)
    means = rng.choice([-2.0, 2.0], 48)
    rows = [(" ".join(f"{x:.3f}" for x in rng.normal(mean, 1, 6)), mean) for mean in means]
    config = tiny_config("", tmp_path / "features")
    config.task = task
    config.data.update(source=f"table:{write(tmp_path / 'a.tsv', rows)}", image_size=None)
    config.model.backbone, config.probe.freeze_until, config.finetune.epochs = "dense", "middle", 0
    config.probe.update(learning_rate=0.05, epochs=8)
    result = run(config, tmp_path / "run")
    assert result["task"]["name"] == task and result["kind"]["name"] == "rows"
    assert result["chosen"]["val"]["accuracy" if task == "classification" else "r2"] > 0.5
    config.task = "multi_label"
    with pytest.raises(ConfigError, match="task = 'multi_label', allowed: 'auto' or 'classification'"):
        run(config, tmp_path / "other")


def test_a_class_that_train_alone_has_is_said_in_a_line(tmp_path, capsys):
    for name in ("train/pos", "train/neg", "train/unsup", "test/pos", "test/neg"):  # as aclImdb lies on disk
        (tmp_path / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / name / f"{i}_7.txt").write_text(f"{i}")
    for name in ("README", "imdb.vocab", "train/labeledBow.feat", "train/urls_unsup.txt", "test/urls_pos.txt"):
        (tmp_path / name).touch()
    config = config_lib.default()
    config.data.update(source=f"folder:{tmp_path}", splits=("train", "test"))
    data = sources.load(sources.resolved(config), TEXTS)
    assert data.class_names == ("neg", "pos", "unsup") and data.splits["train"].num_examples == 30
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"tltrain: no split but train has examples of unsup; in folder:.*; remove what is no class", line)
    config.data.splits = ("train[:80%]", "train[80%:]", "test")
    sources.load(sources.resolved(config), TEXTS)
    assert capsys.readouterr().err == "", "val has some of each"


def test_a_path_of_a_table_means_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", words(10))
    for given in ("~/a.csv", "a.csv"):
        assert sources.resolved(config_of(given, ("train", "val"))).data.source == f"table:{tmp_path}/a.csv"


def test_equal_examples_in_other_rows_have_another_fingerprint(tmp_path):
    """For a page looks up by it and by the name of the row what it has of an example."""
    rows = words(10)
    found = []
    for beside in ([], [("0", "good", "other")]):
        path = write(tmp_path / "a.csv", [*beside, *((*row, "train") for row in rows)], ("text", "label", "part"))
        data = load(path, split="part", splits=("train[:80%]", "train[80%:]"))
        found.append((sorted(contents(data.splits["train"])), data.splits["train"].fingerprint))
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_takes_less_than_four_times_its_size_of_memory(suffix, tmp_path):
    few, many = (write(tmp_path / f"{n}{suffix}", [(f"{i:0200}", "ab"[i % 2]) for i in range(n)]) for n in (200, 1200))
    size = (many.stat().st_size - few.stat().st_size) / 1000
    assert bytes_each(lambda count: load(tmp_path / f"{count}{suffix}"), 200, 1200) < 4 * size
