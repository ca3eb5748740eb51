"""50 kills and 50 SIGTERMs at random moments: every run ends as one never stopped, and nothing is left behind.

    python benchmarks/attacks/kills.py [COUNT] [--processes P] [--signals NAME ...]

A small run of both phases, with stored features and checkpoints within epochs, is stopped at a random moment of its
life, started again by the same command, stopped again, three times, and then let end; so until COUNT processes were
stopped by each signal. Report (without times), predictions and metrics must equal those of the run that was never
stopped, and so must the names of all files in the workdir, the store and the cache. Two cores: 15 minutes.

With P processes the signal, SIGSTOP too, is sent to one of them, and all others have to end within half a minute: with
exit code 7 and a line that names it, or with 143 where it was SIGTERM; where it had not yet found the others, these end
after the minute in which they wait for it. Every other run goes on by one process with P
devices in between, after which numbers may differ by rounding.
"""

import argparse
import itertools
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import small

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)  # the last for one of several processes
STOPS = 3  # of one run
END_SECONDS = 30.0  # in which those end that lost one
START_SECONDS = 60.0  # in which all have to come, and which is over first where one dies before it came
ROUNDING = 1e-6


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--signals", nargs="+", choices=[kind.name for kind in SIGNALS], help="default: all")
    given = parser.parse_args()
    rng, faults = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        root, several = Path(folder), given.processes
        small.write(root)
        for count in {several, 1}:
            Job(root, count, several).end()  # compiles
            remove(root)
        started = time.perf_counter()
        if any(Job(root, several, several).end()[0]):
            sys.exit("the run that nobody stops fails")
        life = time.perf_counter() - started
        expected, span = ending(root), life
        for kind in [signal.Signals[name] for name in given.signals or ()] or SIGNALS[: 2 + (several > 1)]:
            sent, slowest = 0, 0.0
            for number in itertools.count():
                remove(root)
                counts = itertools.cycle((several, 1) if number % 2 else (several,))
                for _ in range(min(STOPS, given.count - sent)):
                    job = Job(root, next(counts), several)
                    was_stopped, seconds, found = job.stop(kind, span * rng.random(), rng)
                    span *= 1.0 if was_stopped else 0.9  # it was over by then: the machine was busier before
                    sent, slowest = sent + was_stopped, max(slowest, seconds)
                    faults += say(kind, found)
                codes, said = Job(root, next(counts), several).end()
                if any(codes) or any("Traceback" in one for one in said):
                    faults += say(kind, [f"the run does not go on: {said}"])
                else:
                    rounding = ROUNDING if number % 2 and several > 1 else 0.0
                    faults += say(kind, differences(ending(root), expected, rounding))
                print(f"{kind.name}: {sent} processes stopped, all ended in at most {slowest:.1f} s", flush=True)
                if sent >= given.count:
                    break
    print(f"a run takes {life:.1f} s; {len(faults)} faults")
    sys.exit(bool(faults))


def say(kind, faults):
    for fault in faults:
        print(f"{kind.name}: {fault}", flush=True)
    return faults


class Job:
    """The run below `root` by `count` processes, of `devices` together."""

    def __init__(self, root, count, devices):
        line = [sys.executable, "-m", "tltrain.main", "--config", root / "config.py", "--workdir", root / "run"]
        environment = os.environ | {"TLTRAIN_CACHE": str(root / "cache")}
        if devices > count:
            environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        several = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
        self.processes = []
        for i in range(count):
            flags = [*several, f"--process_id={i}"] if count > 1 else []
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen([*line, *flags], env=environment, **quiet))

    def end(self):
        """The exit codes of all, and what each said."""
        said = [process.communicate()[1] for process in self.processes]
        return [process.returncode for process in self.processes], said

    def stop(self, kind, seconds, rng):
        """Sends `kind` to one of them after so many seconds; returns whether that came before the end.

        Also the seconds until all others had ended, and in words what is wrong.
        """
        time.sleep(seconds)
        which = rng.randrange(len(self.processes))
        self.processes[which].send_signal(kind)
        begun, faults = time.perf_counter(), []
        for i, process in enumerate(self.processes):
            if i != which or kind == signal.SIGTERM:
                try:
                    process.wait(max(0.0, begun + START_SECONDS + END_SECONDS - time.perf_counter()))
                except subprocess.TimeoutExpired:
                    faults.append(f"process {i} hangs")
        took = time.perf_counter() - begun
        for process in self.processes:
            process.kill()  # who was stopped, or hangs
        codes, said = self.end()
        if codes[which] == 0:
            return False, 0.0, faults
        is_met = not any("did not find each other" in one for one in said)
        if is_met and took > END_SECONDS:
            faults.append(f"the end takes {took:.0f} s")
        for i, code in enumerate(codes):
            if i == which:
                is_right = code in (143, -kind, -signal.SIGKILL)
            elif codes[which] == 143:
                is_right = code == 143
            else:  # or it had done its work
                is_right = code == 0 or (code == 7 and (not is_met or f"process {which} of " in said[i]))
            if not is_right:
                faults.append(f"process {i} of {len(codes)}: exit code {code} as {which} has {codes[which]}: {said[i]}")
        return True, took, faults


def remove(root):
    """All but the compiled programs."""
    for name in ("run", "features", "cache/contents"):
        subprocess.run(["rm", "-rf", root / name], check=True)


def ending(root):
    """What a run leaves, by name."""
    run = root / "run"
    lines = {name: (run / f"{name}.jsonl").read_text().splitlines() for name in ("predictions", "metrics")}
    return {
        "report": small.without_times(json.loads((run / "report.json").read_text())),
        **{name: small.without_times([json.loads(line) for line in of]) for name, of in lines.items()},
        # .name is written where several processes first meet a folder of features
        "files": {name_of(path, root): "" for path in root.rglob("*") if path.is_file() and path.name != ".name"},
    }


def name_of(path, root):
    """A file below `root`, where the names of its own are not drawn anew by Orbax, TensorBoard or JAX."""
    name = path.relative_to(root).as_posix()
    if name.startswith("run/checkpoints"):
        return name if name.endswith(".part") else "/".join(name.split("/")[:4])
    for folder in ("run/tensorboard", "cache/xla"):
        name = folder if name.startswith(folder) and not name.endswith(".part") else name
    return name


def differences(found, expected, rounding, where=""):
    """In words where two trees of JSON differ; numbers do by more than `rounding`, of their size where above 1."""
    if isinstance(expected, dict) and isinstance(found, dict):
        left = [f"{where}/{key} is left or missing" for key in sorted(found.keys() ^ expected.keys())]
        both = sorted(found.keys() & expected.keys())
        return left + [d for key in both for d in differences(found[key], expected[key], rounding, f"{where}/{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [d for i, pair in pairs for d in differences(*pair, rounding, f"{where}/{i}")]
    if isinstance(expected, float) and isinstance(found, float) and rounding:
        same = math.isclose(found, expected, rel_tol=rounding, abs_tol=rounding)
    else:
        same = found == expected
    return [] if same else [f"{where}: {found} instead of {expected}"]


if __name__ == "__main__":
    main()
