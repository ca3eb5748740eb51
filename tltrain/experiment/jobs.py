"""A sweep by several processes of one machine, each with a share of the runs, and with a GPU where there are any.

The process that starts them trains nothing: it tells what is finished, begins the share of one that died again, and
stops all by closing their input, which its own death does too. A signal would not do: Slurm sends one to every process
of a job, and the second one ends a process at once.
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tltrain.errors import ConfigError, TerminatedError
from tltrain.experiment import sweeping
from tltrain.experiment.sweeping import Member, Share
from tltrain.runtime import console
from tltrain.runtime.process import Process

_EVERY = 0.2  # seconds between two looks at the jobs
_DEVICES = "import jax; print(jax.default_backend(), jax.local_device_count())"


def run(
    command: Sequence[str], runs: list[Member], workdir: Path, process: Process, share: Share, num_jobs: int
) -> int:
    """Does a `share` of the `runs` by `num_jobs` processes, and shows the table; returns the exit code.

    Args:
        command: starts a job, once it has `--share=I/N`: which share of the runs is its own.
        runs: all of the sweep.
        workdir: of the sweep; what job I says goes to its `job_I.txt`, but for warnings.
        process: the parent.
        share: of this machine.
        num_jobs: how many there are side by side.

    Raises:
        ConfigError: there are fewer GPUs.
        TerminatedError: it was stopped, and so were they.
    """
    places = places_of(*_devices(), num_jobs, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    number, count = share
    shares = [(number * num_jobs + i, count * num_jobs) for i in range(num_jobs)]
    own = [member for one in shares for member in sweeping.members_of(runs, one)]
    with _watched(own) as look:
        codes = _run([(command, one, place, workdir) for one, place in zip(shares, places, strict=True)], process, look)
        for i, code in enumerate(codes):
            if _is_death(code):
                console.warn(f"job {shares[i][0]} of the sweep died ({_word(code)}); its share is begun again")
                [codes[i]] = _run([(command, shares[i], places[i], workdir)], process, look)
    sweeping.end(runs, workdir, own, sum(sweeping.finished(member) is None for member in own))
    return next((128 - code if code < 0 else code for code in codes if code), 0)


def asked_to_end(asked: Callable[[], bool]) -> Callable[[], bool]:
    """What is true in a job once it is `asked` to end, by a signal or by its parent."""
    return lambda: asked() or bool(select.select([sys.stdin], [], [], 0)[0])


def places_of(kind: str, count: int, num_jobs: int, visible: str) -> list[dict[str, str]]:
    """Environment variables that give each job its GPU.

    Args:
        kind: of the devices of this machine, in the words of jax.
        count: of the devices.
        num_jobs: side by side.
        visible: what `$CUDA_VISIBLE_DEVICES` is here.
    """
    if kind == "cpu":
        return [{}] * num_jobs
    if kind == "tpu":
        raise ConfigError("--jobs divides a machine with GPUs, or without any; here are TPUs; leave it out")
    if num_jobs > count:
        raise ConfigError(f"--jobs={num_jobs}, each with a GPU; on this machine are {count}; give at most as many")
    names = [name for name in visible.split(",") if name] or [str(i) for i in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names[:num_jobs]]


def _devices() -> tuple[str, int]:
    """The kind and number of devices, asked in another process: one that has seen a GPU holds its memory."""
    asked = subprocess.run([sys.executable, "-c", _DEVICES], capture_output=True, text=True, check=False)
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or [_word(asked.returncode)])[-1]
        raise ConfigError(f"jax finds no devices; {said}; correct its installation, or leave --jobs out")
    kind, count = asked.stdout.split()[-2:]
    return kind, int(count)


@contextlib.contextmanager
def _watched(own: list[Member]) -> Iterator[Callable[[], None]]:
    """Yields what tells which of the runs were finished since it was called last."""
    waiting = {member.path: member for member in own if sweeping.finished(member) is None}
    with console.progress("Runs", len(own), len(own) - len(waiting)) as update:

        def look():
            for path in [path for path in waiting if (path / "report.json").exists()]:
                if (result := sweeping.finished(waiting[path])) is not None:
                    number = len(own) - len(waiting) + 1
                    sweeping.tell(sweeping.title_of(waiting.pop(path), number, len(own)), result)
            update(len(own) - len(waiting))

        yield look


def _run(wanted, process, look) -> list[int]:
    """Starts the jobs and waits for them; returns their exit codes, negative where a signal ended one."""
    with contextlib.ExitStack() as stack:
        jobs = [stack.enter_context(_started(*one)) for one in wanted]
        while any(job.poll() is None for job in jobs) and not process.stop():
            time.sleep(_EVERY)
            look()
        for job in jobs:
            if job.stdin:
                job.stdin.close()
        codes = [job.wait() for job in jobs]
    look()
    if process.stop():
        raise TerminatedError("the jobs of the sweep were stopped and have saved; the same command goes on")
    return codes


def _started(command, share, place, workdir) -> subprocess.Popen:
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / f"job_{share[0]}.txt").open("a") as output:
        return subprocess.Popen(
            [*command, f"--share={share[0]}/{share[1]}"],
            stdin=subprocess.PIPE,
            stdout=output,
            env=os.environ | place,
            process_group=0,  # Ctrl-C comes to the parent alone
        )


def _is_death(code):
    return code < 0 or code == TerminatedError.exit_code


def _word(code):
    return f"signal {-code}" if code < 0 else f"exit code {code}"
