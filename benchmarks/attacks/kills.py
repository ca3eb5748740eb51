"""50 kills and 50 SIGTERMs at random moments: every run ends as one never stopped, and nothing is left behind.

    python benchmarks/attacks/kills.py [COUNT]

A small run of both phases, with stored features and checkpoints within epochs, is stopped at a random moment of its
life, started again by the same command, stopped again, three times, and then let end; so until COUNT processes were
stopped by each signal. Report (without times), predictions and metrics must equal those of the run that was never
stopped, and so must the names of all files in the workdir, the store and the cache. Two cores: 15 minutes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import small

STOPS = 3  # of one run


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    rng = random.Random(0)
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small.write(root)
        start(root).wait()  # compiles
        remove(root)
        started = time.perf_counter()
        if start(root).wait():
            sys.exit("the run that nobody stops fails")
        life = time.perf_counter() - started
        expected = ending(root)
        for kind in (signal.SIGKILL, signal.SIGTERM):
            sent, slowest = 0, 0.0
            while sent < count:
                remove(root)
                for _ in range(min(STOPS, count - sent)):
                    process = start(root)
                    time.sleep(life * rng.random())
                    process.send_signal(kind)
                    begun = time.perf_counter()
                    code = process.wait()
                    slowest = max(slowest, time.perf_counter() - begun)
                    sent += code != 0
                    if code not in (0, 143, -kind):
                        faults.append(f"{kind.name}: exit code {code}: {process.stderr.read()}")
                process = start(root)
                said = process.communicate()[1]
                if process.returncode or "Traceback" in said:
                    faults.append(f"{kind.name}: the run does not go on: {said}")
                found = ending(root)
                left = set(found.pop("files")) ^ set(expected["files"])
                faults += [f"{kind.name}: {name} is left or missing" for name in sorted(left)]
                faults += [f"{kind.name}: other {name}" for name in found if found[name] != expected[name]]
            print(f"{kind.name}: {sent} processes stopped, in at most {slowest:.1f} s")
    print(f"a run takes {life:.1f} s; {len(faults)} faults", *faults, sep="\n")
    sys.exit(bool(faults))


def start(root):
    line = [sys.executable, "-m", "tltrain.main", "--config", root / "config.py", "--workdir", root / "run"]
    environment = os.environ | {"TLTRAIN_CACHE": str(root / "cache")}
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def remove(root):
    """All but the compiled programs."""
    for name in ("run", "features", "cache/contents"):
        subprocess.run(["rm", "-rf", root / name], check=True)


def ending(root):
    """What a run leaves, by name."""
    run = root / "run"
    return {
        "report": small.without_times(json.loads((run / "report.json").read_text())),
        "predictions": (run / "predictions.jsonl").read_bytes(),
        "metrics": [small.without_times(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()],
        "files": sorted({name_of(path, root) for path in root.rglob("*") if path.is_file()}),
    }


def name_of(path, root):
    """A file below `root`, where the names of its own are not drawn anew by Orbax, TensorBoard or JAX."""
    name = path.relative_to(root).as_posix()
    if name.startswith("run/checkpoints"):
        return name if name.endswith(".part") else "/".join(name.split("/")[:4])
    for folder in ("run/tensorboard", "cache/xla"):
        name = folder if name.startswith(folder) and not name.endswith(".part") else name
    return name


if __name__ == "__main__":
    main()
