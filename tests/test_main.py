"""The command line, as a user meets it: processes, exit codes, one clear line, and a kill that costs nothing."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICKLY_COMPILED, graded
from test_train import assert_same_run

ROOT = Path(__file__).parents[1]
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


def run(config, *arguments, verb="main", cwd=None, environment=ENVIRONMENT):
    line = command(config, *arguments, verb=verb)
    return subprocess.run(line, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


STORE, PROBE, FINETUNE = "features/*.part/rows.npy", "killed/checkpoints/probe/", "killed/checkpoints/finetune/"
POINTS = {
    "in each part": [STORE, f"{PROBE}*tmp*", f"{FINETUNE}[0-9]*"],
    "between": ["killed/config.json", f"{PROBE}manifest_6.json", f"{FINETUNE}manifest_10.json"],
}


@pytest.mark.bits
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
    assert run(config, "--workdir", str(whole)).returncode == 0
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
    "no such weights": (["--config.model.weights=no.h5"], 5, "no weight file at no.h5"),
    "no such folder": (["--config.data.source=folder:/nowhere"], 4, "no folder at /nowhere"),
    "workdir is a file": (["--workdir=/dev/null"], 6, "cannot write the workdir"),
    "diverges": (["--config.probe.learning_rate=1e30", "--config.probe.optimizer=sgd"], 3, "lower the learning rate"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gets_one_line_and_an_exit_code_of_its_own(case, images, tmp_path):
    arguments, code, message = WRONG[case]
    done = run(write_config(tmp_path, images), "--workdir", str(tmp_path / "run"), *arguments)
    line = done.stderr.strip().splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert line.startswith("tltrain: ") and message in line


BROKEN_FILES = {
    "misspelt key": ("config.probe.learning_rat = 1.0", "did you mean 'probe.learning_rate'"),
    "wrong type": ("config.seed = 'x'", "seed"),
    "syntax": ("config.seed =", "invalid syntax"),
    "exception": ("raise ValueError('no luck')", "no luck"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_config_file_gets_one_line(case, images, tmp_path):
    extra, message = BROKEN_FILES[case]
    done = run(write_config(tmp_path, images, extra), "--workdir", str(tmp_path / "run"))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert message in done.stderr


def test_debug_shows_the_traceback(images, tmp_path):
    done = run(write_config(tmp_path, images), "--workdir=/dev/null", "--debug")
    assert done.returncode == 6 and "Traceback" in done.stderr


def test_a_run_prints_no_warning(images, tmp_path):
    done = run(write_config(tmp_path, images, "config.finetune.augment = True"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "warning" not in done.stdout.lower()
    assert (tmp_path / "runs" / "experiment" / "report.json").exists()


SMALL = ["--config.probe.epochs=1", "--config.data.image_size=(32,32)", "--config.features.dir=features"]


# backbones.py wants the weights of every family: tests/test_zoo.py runs it
SHIPPED = sorted(path.name for path in (ROOT / "configs").glob("*.py") if path.name != "backbones.py")


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
