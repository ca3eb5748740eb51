"""Real processes that train one model: the numbers of one process, and an end whatever becomes of one of them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICKLY_COMPILED
from test_train import TIMES

from tltrain import config as config_lib

TESTS = Path(__file__).parents[1]
CONFIG = """
import json
from conftest import TINY
from tltrain import config
from tltrain.models import zoo

zoo.BACKBONES["tiny"] = TINY

def get_config():
    return config.from_dict(json.loads({text!r}))
"""


class Job:
    """`count` processes of one run in `folder`, each with its output."""

    def __init__(self, config, folder, count, devices=1, changes=(), environment=None, places=()):
        folder.mkdir(exist_ok=True)
        file, text = folder / "config.py", config_lib.to_json(config)
        file.write_text(CONFIG.format(text=text))
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        flags = f"--xla_force_host_platform_device_count={devices} {QUICKLY_COMPILED}"
        given = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
        given |= environment or {}
        self.workdir, self.processes = folder / "run", []
        for i in range(count):
            several = [f"--coordinator={address}", f"--num_processes={count}", f"--process_id={i}"] if count > 1 else []
            command = [sys.executable, "-m", "tltrain.main", f"--config={file}", f"--workdir={self.workdir}", *several]
            command += changes[i] if changes else []
            with (folder / f"said_{i}").open("w") as said:
                place = places[i] if places else None
                process = subprocess.Popen(command, stdout=said, stderr=said, env=given, cwd=place)
            self.processes.append(process)
        self.said = [folder / f"said_{i}" for i in range(count)]

    def end(self, seconds=120):
        """The exit codes of all, which end within so many seconds."""
        until = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, until - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"no end within {seconds} s: {self.told()}")

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()

    def told(self):
        return [said.read_text() for said in self.said]

    def reach(self, file):
        """Waits until the workdir has `file`."""
        until = time.monotonic() + 90
        while not list(self.workdir.glob(file)):
            assert time.monotonic() < until and self.processes[0].poll() is None, self.told()
            time.sleep(0.02)


def result(folder):
    report = json.loads((folder / "run" / "report.json").read_text())
    predictions = (folder / "run" / "predictions.jsonl").read_text()

    def without_times(tree):
        if isinstance(tree, dict):
            return {key: without_times(value) for key, value in tree.items() if key not in TIMES}
        return tree

    return without_times(report["phases"]), predictions


def losses(found, split):
    return [entry[split]["loss"] for one in found[0].values() for entry in one["history"]]


@pytest.fixture
def job(tiny, tmp_path):
    """Makes jobs of a config, each with features of its own, and ends them with the test."""
    made = []

    def make(name, count, given=tiny, **options):
        config = given.copy_and_resolve_references()
        config.features.dir = str(tmp_path / name / "features")
        made.append(Job(config, tmp_path / name, count, **options))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What is made of a config by one process, or by `count`, never stopped; run once for all tests that ask."""
    made = {}

    def result_of(config, count=1, devices=1):
        config = config.copy_and_resolve_references()
        config.features.dir = ""
        key = (config_lib.to_json(config), count, devices)
        if key not in made:
            folder = tmp_path_factory.mktemp("whole")
            config.features.dir = str(folder / "features")
            assert Job(config, folder, count, devices).end() == [0] * count
            made[key] = result(folder)
        return made[key]

    return result_of


def test_two_processes_give_the_bits_of_one_with_two_devices_and_go_on_from_each_other(tiny, tmp_path, job, whole):
    tiny.model.dropout, tiny.checkpoint.every_steps = 0.3, 2
    stopped = job("two", 2)
    stopped.reach("checkpoints/probe/manifest_2.json")
    stopped.processes[1].send_signal(signal.SIGTERM)
    assert stopped.end() == [143, 143], stopped.told()
    assert job("two", 2).end() == [0, 0]
    one, two = whole(tiny, devices=2), result(tmp_path / "two")
    assert losses(two, "train") == losses(one, "train") and two[1] == one[1]
    assert losses(two, "val") == pytest.approx(losses(one, "val"), rel=1e-7), "summed in another order"
    assert json.loads((tmp_path / "two/run/environment.json").read_text())["processes"] == 2


def test_processes_that_differ_are_told_before_anything_is_computed(job, tiny, tmp_path):
    other = job("differ", 2, changes=[[], ["--config.batch_size=16"]])
    assert other.end(60) == [2, 2]
    assert all("process 1 from process 0: batch_size: 8 -> 16" in said for said in other.told())
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        shutil.copytree(tiny.data.source.removeprefix("folder:"), place / "images")
    next((places[1] / "images").rglob("*.jpg")).unlink()
    tiny.data.source = "folder:/proc/self/cwd/images"  # one name, on each host another folder
    other = job("other data", 2, places=places)
    assert other.end(60) == [2, 2]
    assert all(re.search(r"process 1 from process 0: train: .*gone", said) for said in other.told()), other.told()


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--coordinator=localhost:1"], {}, "give all three"),
        (["--process_id=0", "--num_processes=2"], {}, "give all three"),
        (["--coordinator=localhost", "--process_id=0", "--num_processes=2"], {}, "HOST:PORT"),
        ([], {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, "start it by srun"),
    ],
)
def test_flags_that_make_no_job_are_refused_in_a_line(tiny, tmp_path, job, flags, environment, message):
    wrong = job("wrong", 1, changes=[flags], environment=environment)
    assert wrong.end(60) == [2] and message in wrong.told()[0]


@pytest.mark.full
@pytest.mark.parametrize("stored", ["auto", "off"])
def test_texts_are_divided_too(tiny_text, tmp_path, job, whole, stored):
    tiny_text.features.enabled = stored
    assert job("two", 2, tiny_text).end() == [0, 0]
    one, two = whole(tiny_text, devices=2), result(tmp_path / "two")
    assert losses(two, "train") == losses(one, "train")
    assert losses(two, "val") == pytest.approx(losses(one, "val"), rel=1e-6)


DEATHS = {"killed": signal.SIGKILL, "stopped dead": signal.SIGSTOP}


@pytest.mark.full
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("death", DEATHS)
def test_a_process_that_is_gone_ends_the_others_and_the_same_command_goes_on(tiny, tmp_path, job, whole, death, which):
    tiny.checkpoint.every_steps = 2
    tiny.finetune.epochs = 6
    broken = job("broken", 2)
    broken.reach("checkpoints/finetune/manifest_*.json")
    broken.processes[which].send_signal(DEATHS[death])
    began = time.monotonic()
    assert broken.processes[1 - which].wait(30) == 7, broken.told()
    assert time.monotonic() - began < 30
    assert f"process {which} of 2 is" in broken.told()[1 - which]
    broken.kill()
    assert job("broken", 2).end() == [0, 0]
    assert result(tmp_path / "broken") == whole(tiny, count=2)


@pytest.mark.full
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (3, 1), (4, 1), (4, 2)])
def test_every_example_counts_once_for_any_number_of_processes(tiny, tmp_path, job, whole, count, devices):
    tiny.batch_size = 24
    tiny.finetune.update(optimizer="sgd", learning_rate=1e-2)
    tiny.probe.update(optimizer="sgd", learning_rate=1e-2)
    several = job("several", count, devices=devices)
    assert several.end() == [0] * count, several.told()
    one, found = whole(tiny), result(tmp_path / "several")
    for split in ("train", "val"):
        assert losses(found, split) == pytest.approx(losses(one, split), rel=1e-6)
    assert [line["id"] for line in map(json.loads, found[1].splitlines())] == [
        line["id"] for line in map(json.loads, one[1].splitlines())
    ]
