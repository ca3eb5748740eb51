"""What a run is made of is known by content: what is changed is noticed, what is moved is found again."""

import contextlib
import json
import os
import re
import shutil

import numpy as np
import pytest
from test_train import run, without_times
from test_weights import save_backbone

from tltrain import evaluate, predict, report
from tltrain.cache import extraction
from tltrain.data import content
from tltrain.errors import DataError, TerminatedError, WeightsError, WorkdirError
from tltrain.experiment import range_test, train
from tltrain.runtime import record, sealed
from tltrain.runtime.process import Process
from tltrain.runtime.workdir import Workdir
from tltrain.training import setup


@pytest.fixture
def copied(tiny, images, tmp_path):
    """The config `tiny` on a copy of its images, and their folder."""
    root = shutil.copytree(images, tmp_path / "data")
    tiny.data.source = f"folder:{root}"
    tiny.finetune.epochs = 0
    return tiny, root


def stop_after(polls):
    left = iter([False] * polls)
    return lambda: next(left, True)


def exchange(a, b):
    """The bytes of two files of one size and time of change, as an archive with fixed times has them."""
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second), b.write_bytes(first)
    for path in (a, b):
        os.utime(path, (1e9, 1e9))


CHANGES = {
    "added": (lambda root: shutil.copy(root / "dark/dark_000.jpg", root / "dark/new.jpg"), r"1 added \(dark/new.jpg\)"),
    "gone": (lambda root: (root / "dark/dark_001.jpg").unlink(), r"1 gone \(dark/dark_001.jpg\)"),
    "changed": (lambda root: exchange(root / "dark/dark_000.jpg", root / "light/light_000.jpg"), r"1 changed \(light/"),
    "renamed": (lambda root: (root / "dark").rename(root / "zebra"), "classes: dark gone, zebra new"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_other_data(change, copied, tmp_path):
    config, root = copied
    with pytest.raises(TerminatedError):
        run(config, tmp_path / "run", asked=stop_after(20))
    make, message = CHANGES[change]
    make(root)
    with pytest.raises(DataError, match=rf"a run on other inputs; .*{message}.*put them back"):
        run(config, tmp_path / "run")


def test_a_run_does_not_go_on_with_other_weights(copied, tmp_path):
    config, _ = copied
    config.model.update(backbone="mobilenet_v2_0.35", weights=str(tmp_path / "base.h5"))
    save_backbone(tmp_path / "base.h5", seed=0)
    with pytest.raises(TerminatedError):
        run(config, tmp_path / "run", asked=stop_after(20))
    save_backbone(tmp_path / "base.h5", seed=1)
    with pytest.raises(WeightsError, match=r"a run on other inputs; .*weights: sha256 \w{64} -> \w{64}; put them back"):
        run(config, tmp_path / "run")


def test_files_changed_in_place_are_not_taken_for_those_of_stored_features(copied, tmp_path):
    config, root = copied
    before = run(config, tmp_path / "before")["phases"]["probe"]["history"]
    for path in (root / "dark").iterdir():
        exchange(path, root / "light" / path.name.replace("dark", "light"))
    assert run(config, tmp_path / "after")["phases"]["probe"]["history"] != before


def test_a_data_set_that_is_moved_or_copied_finds_its_stored_features(copied, tmp_path, monkeypatch):
    config, root = copied
    history = run(config, tmp_path / "first")["phases"]["probe"]["history"]
    monkeypatch.setattr(extraction, "write", lambda *_: pytest.fail("computed again"))
    for place, move in (("copy", shutil.copytree), ("moved", shutil.move)):
        move(root, tmp_path / place)
        config.data.source = f"folder:{tmp_path / place}"
        assert run(config, tmp_path / f"run_{place}")["phases"]["probe"]["history"] == history


def test_a_mistyped_path_corrected_goes_on_in_the_same_workdir(copied, tmp_path):
    config, root = copied
    config.data.source = f"folder:{root}_"
    with pytest.raises(DataError, match="no folder at"):
        run(config, tmp_path / "run")
    config.data.source = f"folder:{root}"
    assert run(config, tmp_path / "run")["num_examples"] == {"train": 36, "val": 12}


def test_a_relative_path_means_the_same_from_another_folder(copied, tmp_path, monkeypatch):
    config, root = copied
    monkeypatch.chdir(tmp_path)
    config.data.source = f"folder:{root.name}"
    run(config, tmp_path / "run")
    monkeypatch.chdir("/")
    assert evaluate.main(["evaluate", "--workdir", str(tmp_path / "run")]) == 0


def test_an_evaluation_of_what_the_run_saw_refuses_other_files_and_takes_them_as_a_source(copied, tmp_path, capsys):
    config, root = copied
    run(config, tmp_path / "run")
    exchange(root / "dark/dark_000.jpg", root / "light/light_000.jpg")
    line = ["evaluate", "--workdir", str(tmp_path / "run"), "--split", "train"]
    assert evaluate.main(line) == 4
    assert "is not what the run saw; 2 changed (dark/dark_000.jpg, light/light_000.jpg)" in capsys.readouterr().err
    assert evaluate.main([*line, "--source", f"folder:{root}"]) == 0


def test_files_are_read_once_and_again_where_what_is_kept_of_them_is_damaged(images, tmp_path, monkeypatch):
    monkeypatch.setenv("TLTRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(content, "_SETTLED", 0)
    read = content._read_file
    seen = []
    monkeypatch.setattr(content, "_read_file", lambda *of: (seen.append(of[0]), read(*of))[1])
    paths = sorted(images.rglob("*.jpg"))
    first = list(content.of_files(paths, "here"))
    assert list(content.of_files(paths, "here")) == first and len(seen) == 48
    (kept,) = (tmp_path / "contents").iterdir()
    for damaged in (kept.read_bytes()[:-9], b"", bytes([kept.read_bytes()[0] ^ 1]) + kept.read_bytes()[1:]):
        kept.write_bytes(damaged)
        seen.clear()
        assert list(content.of_files(paths, "here")) == first and len(seen) == 48


def test_a_sealed_file_gives_what_was_written_or_nothing(tmp_path):
    path = tmp_path / "folder" / "file"
    sealed.write(path, b"content")
    assert sealed.read(path) == b"content"
    whole = path.read_bytes()
    for i in range(8 * len(whole)):
        path.write_bytes(bytes(byte ^ (1 << i % 8) if j == i // 8 else byte for j, byte in enumerate(whole)))
        assert sealed.read(path) is None
    assert sealed.read(tmp_path / "nothing") is None


def test_a_record_that_is_not_what_the_run_wrote_is_refused_and_the_run_writes_it_anew(copied, tmp_path, capsys):
    config, _ = copied
    path = tmp_path / "run"
    result = run(config, path)
    rng = np.random.default_rng(0)
    for name in ("report.json", *(part for part in record.PARTS if (path / part).exists())):
        whole = (path / name).read_bytes()
        flipped = [whole[:i] + bytes([whole[i] ^ 1 << b]) + whole[i + 1 :] for i, b in positions(rng, whole, 60)]
        for damaged in (b"", b"[]", whole[: len(whole) // 2], *flipped):
            (path / name).write_bytes(damaged)
            try:
                found = record.read_report(path)
            except WorkdirError as error:
                assert str(path / name) in str(error), "the line names the file"
            else:  # a flip may exchange white space of report.json
                assert name == "report.json" and found == json.loads(json.dumps(result))
        (path / name).write_bytes(whole)
    (path / "report.json").write_bytes(flipped[0])
    assert predict.main(["predict", "--workdir", str(path), str(tmp_path)]) == 6
    assert "run the command of the run again, which writes its record anew" in capsys.readouterr().err
    assert without_times(run(config, path)) == without_times(result)
    assert "report.json is damaged" in capsys.readouterr().err
    assert without_times(record.read_report(path)) == without_times(json.loads(json.dumps(result)))


def test_what_a_stopped_run_is_made_of_is_compared_or_known_to_be_damaged(copied, tmp_path):
    config, _ = copied
    fixed, path = setup.load(config, Process().clock), tmp_path / "run" / "identity.json"
    with contextlib.closing(Workdir(path.parent, config)) as work:
        train.begin(work, fixed, {})
        whole = path.read_bytes()
        flipped = [
            whole[:i] + bytes([whole[i] ^ 1 << b]) + whole[i + 1 :]
            for i, b in positions(np.random.default_rng(0), whole, 200)
        ]
        for damaged in (b"", b"[]", b"{}", whole[: len(whole) // 2], *flipped):
            path.write_bytes(damaged)
            if damaged.split() != whole.split():  # white space says nothing
                with pytest.raises(WorkdirError, match=str(path)):
                    train.begin(work, fixed, {})
        path.unlink()
        train.begin(work, fixed, {})
        assert path.read_bytes() == whole


def positions(rng, whole, count):
    return zip(rng.integers(0, len(whole), count).tolist(), rng.integers(0, 8, count).tolist(), strict=True)


@pytest.mark.parametrize("form", [None, 3], ids=["earlier", "later"])
def test_a_workdir_of_another_form_is_refused_in_a_line_that_names_it(copied, tmp_path, capsys, form):
    config, _ = copied
    config.finetune.epochs = 1
    path = tmp_path / "run"
    run(config, path)
    for name in ("report.json", "identity.json"):
        stored = json.loads((path / name).read_text()) | {"format": form}
        stored = {key: value for key, value in stored.items() if value is not None}
        (path / name).write_text(json.dumps(record.with_digest(stored)))
    said = f"{path} is a run of tltrain {'0.1' if form is None else 'of a later version'}, of form {form or 1};"
    with pytest.raises(WorkdirError, match=re.escape(said)):
        run(config, path)
    with pytest.raises(WorkdirError, match=re.escape(said)):
        range_test.run(config, path, "finetune", (1e-7, 1.0, 20), Process())
    capsys.readouterr()
    for verb, *arguments in ((predict, "--workdir", path, tmp_path), (report, path)):
        assert verb.main(["tltrain", *map(str, arguments)]) == 6 and said in capsys.readouterr().err
