"""A sweep by several processes of one machine: the table of one, whatever becomes of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICKLY_COMPILED
from test_main import ENVIRONMENT, write_config

from tltrain.errors import ConfigError
from tltrain.experiment import jobs

SWEEP = """

def sweep():
    for rate in (1e-2, 1e-3, 1e-4, 1e-5):
        yield {"finetune.learning_rate": rate}
"""


@pytest.fixture
def start(images, tmp_path):
    """Starts a sweep of four runs in the folder `name`, by so many jobs."""
    started = []

    def sweep(name, num_jobs):
        (folder := tmp_path / name).mkdir(exist_ok=True)
        config = write_config(folder, images)
        config.write_text(config.read_text() + SWEEP)
        command = [sys.executable, "-m", "tltrain.sweep", f"--config={config}", f"--workdir={folder / 'runs'}"]
        command += [f"--jobs={num_jobs}"]
        with (folder / "said").open("a") as said:
            environment = ENVIRONMENT | {"XLA_FLAGS": QUICKLY_COMPILED}
            started.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
        return started[-1], folder

    yield sweep
    for process in started:
        process.kill()
        process.wait()


def reach(folder, pattern):
    """The process that works on the first run which has a file of the pattern."""
    until = time.monotonic() + 180
    while not (found := sorted((folder / "runs").glob(pattern))):
        assert time.monotonic() < until, (folder / "said").read_text()
        time.sleep(0.02)
    run = found[0].relative_to(folder / "runs").parts[:2]
    return int((folder / "runs").joinpath(*run, ".lock").read_text().split()[-1])


def table(folder):
    """Its columns that do not tell the time."""
    lines = (folder / "runs" / "table.csv").read_text().splitlines()
    kept = [i for i, name in enumerate(lines[0].split(",")) if "second" not in name]
    return [[line.split(",")[i] for i in kept] for line in lines]


@pytest.mark.full
def test_two_jobs_of_which_one_is_killed_give_the_table_of_one_process_and_compute_features_once(start):
    alone, by_one = start("alone", 1)
    assert alone.wait(300) == 0, (by_one / "said").read_text()
    two, folder = start("two", 2)
    os.kill(reach(folder, "*/*/checkpoints/finetune/manifest_*.json"), signal.SIGKILL)
    assert two.wait(300) == 0, (folder / "said").read_text()
    said = (folder / "said").read_text()
    assert "died (signal 9)" in said and said.count("Accuracy on val") == 1 and "[4/4]" in said, said
    assert table(folder) == table(by_one)
    reports = [json.loads(path.read_text()) for path in folder.glob("runs/*/*/report.json")]
    assert sum(report["features"]["examples_per_second"] is not None for report in reports) <= 2, "one a phase"


@pytest.mark.full
def test_jobs_stop_saved_with_the_process_that_started_them_and_go_on(start):
    stopped, folder = start("stopped", 2)
    reach(folder, "*/*/checkpoints/probe/manifest_*.json")
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(120) == 143
    assert "saved in" in (folder / "said").read_text()
    killed, folder = start("stopped", 2)
    job = reach(folder, "*/*/checkpoints/finetune/manifest_*.json")
    killed.kill()
    until = time.monotonic() + 120
    while Path(f"/proc/{job}").exists():
        assert time.monotonic() < until, "it went on alone"
        time.sleep(0.1)
    assert "resuming after step" in "".join(path.read_text() for path in folder.glob("runs/*/*/output.txt"))


@pytest.mark.parametrize(
    ("kind", "visible", "places"),
    [
        ("cpu", "", [{}, {}]),
        ("gpu", "", [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        ("gpu", "5,GPU-8932f937,2", [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}]),
    ],
)
def test_each_job_has_a_gpu_where_there_are_any(kind, visible, places):
    assert jobs.places_of(kind, 3, 2, visible) == places


@pytest.mark.parametrize(("kind", "message"), [("gpu", "are 1;"), ("tpu", "here are TPUs")])
def test_more_jobs_than_gpus_are_refused(kind, message):
    with pytest.raises(ConfigError, match=message):
        jobs.places_of(kind, 1, 2, "")
