"""The launch files under a real Slurm of two nodes, started here: jobs that are requeued, and tasks that die."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICKLY_COMPILED
from test_hosts import CONFIG, Job, result

from tltrain import config as config_lib

pytestmark = pytest.mark.slurm
TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SWEEP = """
def sweep():
    for stage in ("all", "block_1"):
        for rate in (1e-2, 1e-3, 1e-4):
            yield {"finetune.freeze_until": stage, "finetune.learning_rate": rate}
"""


class Slurm:
    """Runs commands of a Slurm from the folder of the project, as a user does."""

    def __init__(self, folder):
        path = os.pathsep.join([str(TESTS), *sys.path])
        own = {"SLURM_CONF": str(folder / "slurm.conf"), "XLA_FLAGS": QUICKLY_COMPILED, "PYTHONPATH": path}
        self.environment = os.environ | own

    def __call__(self, *command):
        done = subprocess.run(
            [*map(str, command)], env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def submit(self, script, folder, *options):
        """The number of a job that does `script` over the config in `folder`."""
        given = [f"--config={folder / 'config.py'}"]
        given += [] if "features" in script else [f"--workdir={folder / 'run'}"]
        output = f"--output={folder}/said_%j_%a"
        return self("sbatch", "--parsable", output, *options, script, *given).strip()

    def end(self, job, folder, seconds=300):
        """What the job said, once it is over."""
        until = time.monotonic() + seconds
        while self("squeue", "--noheader", f"--jobs={job}"):
            assert time.monotonic() < until, said(folder)
            time.sleep(0.5)
        return said(folder)


def said(folder):
    return "\n".join(path.read_text() for path in sorted(folder.glob("said_*"), key=lambda path: path.stat().st_mtime))


def write(config, folder, more=""):
    folder.mkdir()
    config.features.dir = str(folder / "features")
    (folder / "config.py").write_text(CONFIG.format(text=config_lib.to_json(config)) + more)


def reach(folder, pattern, seconds=180):
    """The first file of the pattern that `folder` has."""
    until = time.monotonic() + seconds
    while not (found := sorted((folder / "run").glob(pattern))):
        assert time.monotonic() < until, said(folder)
        time.sleep(0.02)
    return found[0]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    command = ["bash", TESTS / "launch" / "slurm.sh", folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cluster:
        assert cluster.stdout.readline() == "ready\n"
        yield Slurm(folder)  # at the end its input is closed, and it stops


def test_a_job_on_two_nodes_that_is_requeued_ends_as_one_never_stopped(tiny, tmp_path, slurm):
    tiny.checkpoint.every_steps, tiny.finetune.epochs = 2, 4
    write(tiny, tmp_path / "requeued")
    job = slurm.submit("launch/slurm.sh", tmp_path / "requeued", "--nodes=2", "--ntasks-per-node=1")
    reach(tmp_path / "requeued", "checkpoints/finetune/manifest_2.json")
    slurm("scontrol", "requeue", job)
    told = slurm.end(job, tmp_path / "requeued")
    assert told.count("Result on") == 1 and "resuming after step" in told, told
    whole = Job(tiny, tmp_path / "whole", 2)
    assert whole.end(300) == [0, 0], whole.told()
    assert result(tmp_path / "requeued") == result(tmp_path / "whole")


def rows(folder):
    """The table without what tells the time."""
    with (folder / "run" / "table.csv").open() as file:
        return [{key: row[key] for key in row if "second" not in key} for row in csv.DictReader(file)]


def test_a_sweep_as_a_job_array_of_which_a_task_is_killed_gives_the_table_of_one_process(tiny, tmp_path, slurm):
    write(tiny, tmp_path / "array", SWEEP)
    array = slurm.submit("launch/sweep.sbatch", tmp_path / "array", "--array=0-1")
    last = slurm.submit("launch/sweep.sbatch", tmp_path / "array", f"--dependency=afterany:{array}")
    run = reach(tmp_path / "array", "*/*/checkpoints/*/manifest_*.json").parents[2]
    os.kill(int((run / ".lock").read_text().split()[-1]), signal.SIGKILL)
    told = slurm.end(last, tmp_path / "array")
    assert told.count("Accuracy on val") == 1 and len(rows(tmp_path / "array")) == 6, told
    write(tiny, tmp_path / "alone", SWEEP)
    given = [f"--config={tmp_path}/alone/config.py", f"--workdir={tmp_path}/alone/run"]
    slurm(sys.executable, "-m", "tltrain.sweep", *given)
    assert rows(tmp_path / "array") == rows(tmp_path / "alone")


def test_features_as_a_job_array_are_those_that_a_run_needs(tiny, tmp_path, slurm):
    write(tiny, tmp_path / "array", "\nfrom tltrain.cache import shards\n\nshards._FEWEST = 8\n")
    array = slurm.submit("launch/features.sbatch", tmp_path / "array", "--array=0-1")
    last = slurm.submit("launch/features.sbatch", tmp_path / "array", f"--dependency=afterany:{array}")
    told = slurm.end(last, tmp_path / "array")
    assert told.count("The same command without a job array does what is missing") == 2, told
    assert "All that can be stored ahead of the run" in told, told
    assert not list((tmp_path / "array" / "features").glob("*.part"))
    found = Job(tiny, tmp_path / "array", 1)
    assert found.end(300) == [0] and "Computing" not in found.told()[0], found.told()
