"""What launch/ says to engines that are not here: read by their own linters and models, and by jax's detection."""

import contextlib
import http.server
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from conftest import graded

from tltrain.runtime import command_line

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), Path(__file__).with_name("slurm.sh"), ROOT / ".ci" / "run"]
WHO = """
import os, sys, jax
os.environ.pop("TPU_SKIP_MDS_QUERY", None)  # which jax sets where it sees no chips
from jax._src import distributed
from tltrain.errors import TltrainError
from tltrain.runtime import hosts
try:
    hosts.join(*sys.argv[1:], None, None)
except TltrainError as error:
    sys.exit(f"{error.exit_code} {error}")
print(distributed.global_state.coordinator_address, hosts.count(), hosts.index())
hosts.leave(0)
"""


def found(program):
    path = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return path or pytest.skip(f"there is no {program}")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_faultless_to_shellcheck(script):
    line = [found("shellcheck"), "--external-sources", "--shell=bash", script]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_is_faultless_to_hadolint_and_installs_what_setup_does():
    done = subprocess.run([found("hadolint"), LAUNCH / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

    def installs(name):
        lines = re.split(r"&&|\n", (LAUNCH / name).read_text().replace("\\\n", " "))
        words = [shlex.split(line.partition("pip install ")[2]) for line in lines if "python -m pip install" in line]
        return [[word for word in line if word != "--no-cache-dir"] for line in words]

    own = [[word.replace("${EXTRAS}", "quickstart,dev") for word in line] for line in installs("Dockerfile")]
    assert own == installs("setup.sh") and len(own) == 2


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_the_jobset_has_only_fields_of_its_kind(jobset):
    models = pytest.importorskip("kubeflow_trainer_api.models")
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset  # an unknown field would be gone
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 2
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() != jobset


def test_pods_of_the_jobset_are_told_who_they_are(jobset):
    [workers] = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    given = {"JOBSET_NAME": jobset["metadata"]["name"], "JOB_COMPLETION_INDEX": "1"}  # as the controllers set them
    verb, *arguments = [re.sub(r"\$\((\w+)\)", lambda name: given[name[1]], one) for one in container["args"]]
    read, others = command_line.of_job(verb).parse_known_args(arguments)
    assert not others and Path(read.config_file).is_file()
    name = f"{jobset['metadata']['name']}-{workers['name']}-0"  # of the job; its pods are in a network of its name
    assert read.coordinator == f"{name}-0.{jobset['metadata']['name']}:5527"
    assert read.process_id == 1 and read.num_processes == job["parallelism"] == job["completions"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        v["name"] for v in job["template"]["spec"]["volumes"]
    }


def test_all_hosts_of_a_tpu_slice_get_the_arguments(tmp_path):
    (tmp_path / "gcloud").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')  # says what gcloud is given
    (tmp_path / "gcloud").chmod(0o755)
    config = ["--config", "configs/quickstart.py", "--config.data.source=folder:/shared/my 'own' $images"]
    line = ["bash", LAUNCH / "tpu_pod.sh", "slice", "us-central2-b", "registry/tltrain", *config]
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    *flags, remote = subprocess.run(
        line, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert flags == ["compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=us-central2-b", "--worker=all"]
    words = shlex.split(remote.removeprefix("--command="))
    assert words[words.index("registry/tltrain") + 1 :] == ["main", *config, "--coordinator=auto"]


class Metadata(http.server.BaseHTTPRequestHandler):
    """What Google tells a host of a TPU slice, here at an address for each."""

    def do_GET(self):
        index = self.headers["Host"].partition(":")[0][-1]
        known = {"agent-worker-number": index, "worker-network-endpoints": "127.0.0.1,127.0.0.2", "tpu-env": "A: 'b'"}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(known[self.path.rpartition("/")[2]].encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def metadata():
    with http.server.ThreadingHTTPServer(("", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.[1-2]", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1,10.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2"}
GKE = {"JAX_FORCE_TPU_INIT": "1", "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.2"}
PLATFORMS = {
    "Slurm": ("", SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "{i}"}, "127.0.0.1:61447"),
    "Open MPI": ("", OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "{i}", "OMPI_COMM_WORLD_LOCAL_RANK": "{i}"}, "127.0.0.1:"),
    "TPUs of GKE": ("auto", GKE | {"TPU_WORKER_ID": "{i}", "GCE_METADATA_IP": "127.0.0.1{i}:{port}"}, "127.0.0.1:8482"),
    "a TPU slice": ("auto", {"JAX_FORCE_TPU_INIT": "1", "GCE_METADATA_IP": "127.0.0.1{i}:{port}"}, "127.0.0.1:8482"),
}


def ask(coordinator, environment):
    given = os.environ | environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", WHO, coordinator]
    return subprocess.Popen(line, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("platform", graded(PLATFORMS, ["Slurm"]))
def test_processes_find_each_other_by_what_the_platform_sets(platform, metadata):
    coordinator, environment, address = PLATFORMS[platform]
    each = [{key: text.format(i=i, port=metadata) for key, text in environment.items()} for i in range(2)]
    asked = [ask(coordinator, one) for one in each]
    said = [process.communicate(timeout=120) for process in asked]
    assert [out.split()[1:] for out, _ in said] == [["2", "0"], ["2", "1"]], said
    assert all(out.startswith(address) for out, _ in said), said


@pytest.mark.full
@pytest.mark.parametrize("environment", [{}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}], ids=["alone", "a plain pod"])
def test_auto_where_nothing_says_who_the_processes_are_is_refused_in_a_line(environment):
    process = ask("auto", environment)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1 and error.splitlines()[-1].startswith("2 no job that jax knows"), error


def test_a_process_killed_before_it_met_the_others_is_not_waited_for():
    script = LAUNCH / "multi_process.sh"
    soon = script.read_text().replace("patience=30", "patience=9")
    command = ["bash", "-c", soon, script, "2", "--config", "configs/quickstart.py"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (first := process_of(job, 1)):  # that is started before the other, and has to import much
        pass
    os.kill(first, signal.SIGKILL)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 137 and "a process ended with exit code 137; the others are ended\n" in said, said


def process_of(job, number):
    """The process of `job` with this number, None where there is none."""
    for child in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
        with contextlib.suppress(OSError):  # of one that has ended meanwhile
            if f"--process_id={number}".encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None
