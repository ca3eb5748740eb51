"""Places of every kind: `~`, other folders, odd names, remote paths, disks that are full or lock nothing."""

import errno
import fcntl
import importlib
import json
import multiprocessing
import os
import pwd
import shutil
import sys
import threading
from pathlib import Path

import pytest
from test_main import call, write_config
from test_train import assert_same_run, run

import tltrain
from tltrain import cache, doctor, evaluate, export, features, find_lr, main, places, predict, report, sweep
from tltrain.cache import space
from tltrain.data import sources
from tltrain.errors import ConfigError, TerminatedError, WorkdirError
from tltrain.pages import compare
from tltrain.runtime import console, scalars
from tltrain.runtime.checkpoint import Checkpoints
from tltrain.runtime.process import Clock
from tltrain.training.setup import load

ODD = "run [1] 50% {x} *? 'é\" \\ **"
QUICK = ("--config.probe.epochs=1", "--config.finetune.epochs=0")


@pytest.fixture
def probe(tiny):
    tiny.probe.epochs = 1
    tiny.finetune.epochs = 0
    return tiny


def test_a_tilde_is_the_home_folder_in_every_path(images, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").symlink_to(images)
    write_config(tmp_path, images)
    config = ("--config=~/experiment.py", "--config.data.source=folder:~/images", "--config.features.dir=~/features")
    assert call(capsys, *config, *QUICK, "--workdir=~/run") == (0, "")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["data"]["source"] == f"folder:{tmp_path}/images"
    assert stored["features"]["dir"] == f"{tmp_path}/features" and (tmp_path / "features").is_dir()
    weights = ("--config.model.weights=~/no.h5", "--workdir=~/other")
    assert call(capsys, *config, *QUICK, *weights)[1].startswith(f"tltrain: no weight file at {tmp_path}/no.h5")
    ours = ("--workdir=~/run", "--output=~/all.jsonl", "--source=folder:~/images", "--split=train")
    assert call(capsys, *ours, verb=evaluate) == (0, "")
    assert call(capsys, "--workdir=~/run", "--output=~/all.csv", "--features=~/f.npz", "~/images", verb=predict)[0] == 0
    assert call(capsys, "~/run", verb=report)[0] == call(capsys, "--list", "--dir=~/features", verb=features)[0] == 0
    assert {"all.jsonl", "all.csv", "f.npz"} <= {path.name for path in tmp_path.iterdir()}
    assert "no home folder for ~nobody_/x; on the command line" in call(capsys, *config, "--workdir=~nobody_/x")[1]
    tiny.data.update(source="tfds:cats_vs_dogs", data_dir="~/tfds")
    assert sources.resolved(tiny).data.data_dir == f"{tmp_path}/tfds"


def test_relative_paths_of_a_run_mean_the_same_from_another_folder(probe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probe.features.dir = "features"
    run(probe, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["features"]["dir"] == f"{tmp_path}/features"
    monkeypatch.chdir("/")
    assert evaluate.main(["evaluate", "--workdir", str(tmp_path / "run")]) == 0
    assert not Path("/features").exists()


def test_a_run_begun_with_relative_paths_goes_on_from_its_folder(probe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probe.features.dir = "features"
    with pytest.raises(TerminatedError):
        run(probe, tmp_path / "run", asked=lambda: True)
    path = tmp_path / "run" / "config.json"
    path.parent.mkdir(exist_ok=True)
    stored = json.loads(path.read_text())
    stored["features"]["dir"] = "features"  # as earlier versions wrote it
    path.write_text(json.dumps(stored))
    assert run(probe, tmp_path / "run")["phases"]["probe"]["history"]
    probe.features.dir = "others"
    path.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"features.dir: '.*/features' -> '.*/others'"):
        run(probe, tmp_path / "run")


def test_a_workdir_may_have_any_name(images, probe, tmp_path, capsys):
    probe.log.tensorboard = True
    polls = iter([False] * 6)
    odd = tmp_path / ODD / "a"
    with pytest.raises(TerminatedError):
        run(probe, odd, asked=lambda: next(polls, True))
    run(probe, odd)
    run(probe, tmp_path / "plain")
    assert_same_run(odd, tmp_path / "plain")
    assert (odd / "tensorboard" / "probe").is_dir()
    assert call(capsys, "--workdir", odd, verb=evaluate) == (0, "")
    assert call(capsys, "--workdir", odd, images, "--output", odd / "all.csv", verb=predict) == (0, "")
    assert call(capsys, odd, tmp_path / "plain", "--output", odd / "both.html", verb=report) == (0, "")
    assert call(capsys, "--list", "--dir", odd, verb=features) == (0, "")


@pytest.mark.parametrize(("verb", "arguments"), [(find_lr, ["--steps=20"]), (doctor, ["--limit=8"]), (sweep, [])])
def test_so_may_that_of_every_verb_over_a_config(verb, arguments, images, tiny, tmp_path, capsys):
    config = ("--config", write_config(tmp_path, images), "--workdir", tmp_path / ODD)
    with (tmp_path / "experiment.py").open("a") as file:
        file.write("\n\ndef sweep():\n    yield {'probe.learning_rate': 0.1}\n    yield {'probe.learning_rate': 0.2}\n")
    code, line = call(capsys, *config, *QUICK, *arguments, verb=verb)
    assert line == "" and code == 0


def test_a_name_for_libraries_that_take_names_for_patterns_is_that_of_the_same_folder(tmp_path):
    odd = tmp_path / ODD
    odd.mkdir()
    with places.literal(odd) as named:
        (named / "file").touch()
        assert not set("[]*?\\") & set(str(named))
    assert [path.name for path in odd.iterdir()] == ["file"] and not named.exists()
    with places.literal(tmp_path) as named:
        assert named == tmp_path


def test_a_link_from_a_page_to_a_run_of_any_name_is_a_url(tmp_path):
    link = compare._link(tmp_path / "a?b#c 100%", tmp_path / "runs.html")
    assert link == "a%3Fb%23c%20100%25/report.html"


REMOTE = {
    "data.source": ("--config.data.source=folder:gs://bucket/x",),
    "model.weights": ("--config.model.weights=s3://bucket/x.h5",),
    "features.dir": ("--config.features.dir=hdfs://host/x",),
    "data.data_dir": ("--config.data.source=tfds:x", "--config.data.data_dir=gs://bucket/x"),
    "workdir": ("--workdir=gs://bucket/x",),
    "config": ("--config=https://host/x.py",),
}


@pytest.mark.parametrize("verb", [main, doctor])
@pytest.mark.parametrize("key", REMOTE)
def test_remote_paths_are_refused_in_a_line(key, verb, images, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ("--config", write_config(tmp_path, images), "--workdir", tmp_path / "run")
    code, line = call(capsys, *config, *REMOTE[key], verb=verb)
    assert code == 2 and line.startswith("tltrain: remote paths are not supported: ")
    assert key in line or "on the command line" in line
    assert "mount it as a folder, or copy it" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["TLTRAIN_CACHE", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("verb", [main, features])
def test_a_remote_cache_is_refused_in_a_line(name, verb, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TLTRAIN_CACHE")
    monkeypatch.setenv(name, "gs://bucket/x")
    given = ["--list"] if verb is features else ["--config", write_config(tmp_path, images)]
    code, line = call(capsys, *given, verb=verb)
    assert code == 2 and line.startswith("tltrain: remote paths are not supported: gs://bucket/x; by $TLTRAIN_CACHE")
    assert not (tmp_path / "gs:").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(number, probe, tmp_path, monkeypatch):
    def fail(file, _):
        if lockless in Path(file.name).parents:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    for lockless in (tmp_path / "run", tmp_path / "features"):
        with pytest.raises(WorkdirError, match=f"cannot lock {lockless}/.*its file system has no locks; choose"):
            run(probe, tmp_path / "run")


@pytest.mark.parametrize("name", ["tensorboard", "tensorboard/probe", "checkpoints", "checkpoints/probe"])
def test_a_file_where_a_folder_should_be_is_named(name, images, tiny, tmp_path, capsys):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.touch()
    config = ("--config", write_config(tmp_path, images), "--workdir", tmp_path / "run")
    code = main.main(["main", *map(str, config), *QUICK])
    told = capsys.readouterr()
    assert code == 6 and told.err.count("\n") == 1
    assert told.err.startswith("tltrain: cannot write ") and str(path) in told.err


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "config.json", "predictions.jsonl", "report.json"])
def test_a_folder_where_a_file_should_be_is_named(name, images, tiny, tmp_path, capsys):
    (tmp_path / "run" / name).mkdir(parents=True)
    config = ("--config", write_config(tmp_path, images), "--workdir", tmp_path / "run")
    code, line = call(capsys, *config, *QUICK)
    assert code == 6 and str(tmp_path / "run") in line


def test_a_disk_too_small_for_the_checkpoints_is_told_before_anything_is_computed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**20, 2**20, 2**18))
    monkeypatch.setattr(cache.features, "ensure", lambda *_: pytest.fail("computed"))
    with pytest.raises(WorkdirError, match=r"the checkpoints need 0\.\d MiB and 0\.2 MiB are free; at .*/run; free"):
        run(tiny, tmp_path / "run")


def test_what_a_run_stores_is_what_its_check_expects(tiny, tmp_path):
    run(tiny, tmp_path / "run")
    files = [path for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()]
    stored = sum(path.stat().st_size for path in files)
    assert 0.5 * stored < space.of_run(load(tiny, Clock())) < 3 * stored


def test_a_disk_that_is_full_while_a_checkpoint_is_saved_ends_in_a_line(images, tiny, tmp_path, monkeypatch, capsys):
    config = ("--config", write_config(tmp_path, images), "--workdir", tmp_path / "run")
    checked = Checkpoints._check_room

    def fill(checkpoints, state):
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1))
        checked(checkpoints, state)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_check_room", fill)
        assert main.main(["main", *map(str, config), *QUICK]) == 6
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "cannot save step 3; No space left on device; at " in told
    assert call(capsys, *config, *QUICK) == (0, "")


@pytest.mark.parametrize("method", ["write", "flush"])
def test_events_that_cannot_be_written_end_a_run_in_a_line(method, probe, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    probe.log.tensorboard = True
    monkeypatch.setattr(scalars.RecordWriter, method, fail)
    with pytest.raises(WorkdirError, match="tensorboard/probe; No space left on device; free space"):
        run(probe, tmp_path / "run")


def test_events_need_no_shared_memory_and_no_thread(tmp_path, tiny, monkeypatch):
    tiny.log.tensorboard = True
    monkeypatch.setattr(multiprocessing, "Queue", lambda *_: pytest.fail("a semaphore"))
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("a thread"))
    written = scalars.Scalars(tmp_path, tiny)
    written.write("probe", 3, {"step/loss": 0.5})
    written.close()
    (file,) = (tmp_path / "tensorboard" / "probe").iterdir()
    assert b"step/loss" in file.read_bytes() and "tfevents" in file.name


def test_a_full_disk_met_by_the_output_itself_is_a_line(images, tiny, tmp_path, monkeypatch, capsys):
    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    ended = []
    monkeypatch.setattr(os, "dup2", lambda *numbers: ended.append(numbers))
    monkeypatch.setattr(console, "say", fail)
    config = ("--config", write_config(tmp_path, images), "--workdir", tmp_path / "run")
    code, line = call(capsys, *config)
    assert code == 6 and line.startswith("tltrain: No space left on device; while output was written; free") and ended


@pytest.mark.parametrize("verb", [evaluate, export, predict, report])
def test_a_path_that_no_file_can_have_is_a_line(verb, tmp_path, capsys):
    workdir = tmp_path / ("9" * 300)
    given = {evaluate: [], export: ["--format=keras"], predict: ["x.jpg"]}.get(verb, [])
    arguments = [workdir] if verb is report else ["--workdir", workdir, *given]
    code, line = call(capsys, *arguments, verb=verb)
    assert code == 6 and line.startswith("tltrain: File name too long; ") and "check the path" in line


def test_windows_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        importlib.reload(tltrain)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "tltrain: Windows is not supported; use WSL (wsl --install), and start it there\n"


def test_a_user_without_a_name_and_a_home_needs_a_cache_alone(probe, tmp_path, monkeypatch, capsys):
    def unknown(_):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("TLTRAIN_CACHE", str(tmp_path / "cache"))
    probe.features.dir = ""
    run(probe, tmp_path / "run")
    assert any((tmp_path / "cache" / "features").iterdir())
    assert call(capsys, "--list", verb=features) == (0, "")
    monkeypatch.delenv("TLTRAIN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(WorkdirError, match=r"no home folder; .*set \$HOME or \$TLTRAIN_CACHE"):
        run(probe, tmp_path / "other")
    code, line = call(capsys, "--list", verb=features)
    assert code == 6 and "no home folder" in line
