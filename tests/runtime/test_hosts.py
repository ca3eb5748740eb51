"""Real processes that train one model: the numbers of one process, and an end whatever becomes of one of them."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
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


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Wire:
    """A network between who connects to `address` and the port `to`; once it is `cut` or `hushed` nothing passes."""

    def __init__(self):
        self.to, self._is_hushed, self._listening = None, False, socket.create_server(("localhost", 0))
        self.address, self._ends = f"localhost:{self._listening.getsockname()[1]}", [self._listening]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                pair = [self._listening.accept()[0]]
                self._ends += pair
                try:
                    pair.append(socket.create_connection(("localhost", self.to)))
                except OSError:  # nobody listens there yet
                    pair[0].close()
                    continue
                self._ends.append(pair[1])
                for one, other in (pair, pair[::-1]):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(2**16):
                if not self._is_hushed:
                    other.sendall(data)

    def hush(self):
        self._is_hushed = True

    def cut(self):
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Job:
    """`count` processes of one run in `folder`, each with its output; the last sees the first through a `wire`."""

    def __init__(self, config, folder, count, devices=1, changes=(), environment=None, places=(), wire=None, code=""):
        folder.mkdir(exist_ok=True)
        file, text = folder / "config.py", config_lib.to_json(config)
        file.write_text(CONFIG.format(text=text) + code)
        port = free_port()
        addresses = [f"localhost:{port}"] * count
        if wire:
            wire.to, addresses[-1] = port, wire.address
        flags = f"--xla_force_host_platform_device_count={devices} {QUICKLY_COMPILED}"
        given = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
        given |= environment or {}
        self.workdir, self.processes = folder / "run", []
        for i in range(count):
            several = [f"--coordinator={addresses[i]}", f"--num_processes={count}", f"--process_id={i}"]
            command = [sys.executable, "-m", "tltrain.main", f"--config={file}", f"--workdir={self.workdir}"]
            command += several if count > 1 else []
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

    def make(name, count, given=tiny, features="", **options):
        config = given.copy_and_resolve_references()
        config.features.dir = features or str(tmp_path / name / "features")
        made.append(Job(config, tmp_path / name, count, **options))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def wire():
    made = Wire()
    yield made
    made.cut()


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
        (["--coordinator=localhost:99999", "--process_id=1", "--num_processes=2"], {}, "'99999' is no port"),
        ([], {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, "start it by srun"),
    ],
)
def test_flags_that_make_no_job_are_refused_in_a_line(tiny, tmp_path, job, flags, environment, message):
    wrong = job("wrong", 1, changes=[flags], environment=environment)
    assert wrong.end(60) == [2] and message in wrong.told()[0]


def test_a_port_that_another_program_has_is_refused_in_a_line(job):
    with socket.create_server(("localhost", 0)) as other:
        address = f"--coordinator=localhost:{other.getsockname()[1]}"
        taken = job("taken", 1, changes=[[address, "--num_processes=2", "--process_id=0"]])
        assert taken.end(60) == [7] and "a port that no other program has" in taken.told()[0]


SOON = """
from tltrain.runtime import launchers
launchers._START_SECONDS = 8
"""


@pytest.mark.full
def test_a_process_to_which_no_other_comes_ends_in_a_line(job):
    def waiting(name, which, code):
        port = free_port()
        flags = [f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={which}"]
        return port, job(name, 1, changes=[flags], code=code)

    port, stopped = waiting("stopped", 0, "")
    for _, one in [waiting(f"waiting {which}", which, SOON) for which in range(2)]:
        assert one.end(60) == [7], one.told()
        assert "the processes did not find each other; at localhost:" in one.told()[0].splitlines()[-1]
    socket.create_connection(("localhost", port)).close()  # it listens
    stopped.processes[0].terminate()
    assert stopped.end(15) == [143], stopped.told()
    assert "stopped while waiting for the other processes; nothing is lost" in stopped.told()[0].splitlines()[-1]


@pytest.mark.full
@pytest.mark.parametrize("stored", ["auto", "off"])
def test_texts_are_divided_too(tiny_text, tmp_path, job, whole, stored):
    tiny_text.features.enabled = stored
    assert job("two", 2, tiny_text).end() == [0, 0]
    one, two = whole(tiny_text, devices=2), result(tmp_path / "two")
    assert losses(two, "train") == losses(one, "train")
    assert losses(two, "val") == pytest.approx(losses(one, "val"), rel=1e-6)


@pytest.mark.full
def test_a_ridge_probe_is_of_the_sums_of_all(tiny, tmp_path, job, whole):
    tiny.probe.update(optimizer="ridge", weight_decay=1.0, epochs=1, augment=False)
    tiny.finetune.epochs = 0
    assert job("two", 2, tiny).end() == [0, 0]
    one, two = whole(tiny), result(tmp_path / "two")
    for split in ("train", "val"):
        assert losses(two, split) == pytest.approx(losses(one, split), rel=1e-5)


def break_images(config, folder, count):
    """Of a copy of the images in `folder`; returns their names."""
    root = shutil.copytree(config.data.source.removeprefix("folder:"), folder / "images")
    broken = sorted(root.rglob("*.jpg"))[:: 48 // count][:count]
    for image in broken:
        image.write_bytes(b"\xff\xd8 no image")
    config.data.source = f"folder:{root}"
    return [str(image.relative_to(root)) for image in broken]


@pytest.mark.parametrize("stored", ["auto", pytest.param("off", marks=pytest.mark.full)])
def test_what_cannot_be_read_is_named_once_and_counted_once(tiny, tmp_path, job, stored):
    tiny.features.enabled, tiny.data.max_corrupt = stored, 0.3
    broken, two = break_images(tiny, tmp_path, 6), job("two", 2)
    assert two.end() == [0, 0], two.told()
    said = "".join(two.told())
    assert [said.count(f"skipped {name}: ") for name in broken] == [1] * 6
    assert sum(json.loads((two.workdir / "report.json").read_text())["num_corrupt"].values()) == 6


@pytest.mark.full
@pytest.mark.parametrize(("stored", "count"), [("auto", 1), ("off", 6)])
def test_too_much_that_cannot_be_read_ends_all_alike(tiny, tmp_path, job, stored, count):
    tiny.features.enabled, tiny.data.max_corrupt = stored, 0.0 if count == 1 else 0.1
    break_images(tiny, tmp_path, count)  # a single one is met by one process
    two = job("two", 2)
    assert two.end(60) == [4, 4], two.told()
    assert "cannot be read; in train[" in "".join(two.told())


DEATHS = {"killed": signal.SIGKILL, "stopped dead": signal.SIGSTOP}


@pytest.mark.full
@pytest.mark.parametrize(("death", "which"), [("killed", 0), ("stopped dead", 1)])
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


# a read that does not come back, as of a dead server: within the ninth pass over examples, of training
HANGS = """
import itertools, threading
from tltrain.data import pipeline
from tltrain.runtime import hosts
from_examples, passes = pipeline.from_examples, itertools.count(1)

def hanging(*given):
    number = next(passes)
    for i, batch in enumerate(from_examples(*given)):
        if (number, i, hosts.index()) == (9, 1, {which}):
            threading.Event().wait()
        yield batch

pipeline.from_examples = hanging
"""


@pytest.mark.full
@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_is_there_but_hangs_ends_all(tiny, job, which):
    tiny.features.enabled, tiny.probe.epochs, tiny.finetune.epochs = "off", 0, 8
    hung = job("hung", 2, tiny, code=HANGS.format(which=which))
    assert hung.end(90) == [7, 7], hung.told()
    assert all(f"process {which} of 2 is behind" in said for said in hung.told()), hung.told()


@pytest.mark.full
@pytest.mark.parametrize("lose", [Wire.cut, Wire.hush])
def test_a_lost_network_ends_all_and_the_same_command_goes_on(tiny, tmp_path, job, whole, wire, lose):
    tiny.checkpoint.every_steps = 2
    tiny.finetune.epochs = 6
    broken = job("broken", 2, wire=wire)
    broken.reach("checkpoints/finetune/manifest_*.json")
    lose(wire)
    assert broken.end(30) == [7, 7], broken.told()
    assert "process 1 of 2 is" in broken.told()[0] and "process 0 of 2 is" in broken.told()[1]
    assert job("broken", 2).end() == [0, 0]
    assert result(tmp_path / "broken") == whole(tiny, count=2)


@pytest.mark.full
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (3, 1), (4, 2)])
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
