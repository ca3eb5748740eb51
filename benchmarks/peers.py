"""A job beside the libraries a researcher would use instead: whole processes, alternating, medians.

    python benchmarks/peers.py                       # images and weights of the quickstart
    python benchmarks/peers.py --config configs/quickstart_text.py     # sentences
    python benchmarks/peers.py --config configs/cats_dogs.py --config.data.data_dir=...   # any job of two phases

Run by the Python that has tltrain (`.venv/bin/python` after `bash launch/setup.sh`). The first time an environment of
their own is made for the others, 8 GB from PyPI, in benchmarks/peers/.venv. Two cores: 27 minutes a round of images;
Keras on JAX, at about ten images a second, comes on top, once. Leave the machine alone meanwhile. Round r has seed r.

Every library gets the same examples, arrays, rates, epochs and batches. Those that do not read TFDS get the encoded
images as files, written beforehand. Seconds are those of the whole process; memory is what its processes hold at most
together.
"""

import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from tltrain import config as config_lib
from tltrain.data import sources
from tltrain.models import zoo
from tltrain.runtime import console

HERE = Path(__file__).parent
CONFIG = config_flags.DEFINE_config_file("config", str(HERE / "textile.py"), "The job.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds; each has its seed.")
PYTHON = flags.DEFINE_string("peers_python", "", "Interpreter that has the other libraries; default: one made here.")
ONLY = flags.DEFINE_list("only", [], "Names of rows to run; default: all.")
OUT = flags.DEFINE_string("out", "runs/peers.json", "Every measurement, as JSON; an earlier one there is continued.")
SLOW = 600  # seconds above which a row runs in the first round alone

KERAS = {"keras_jax": "jax"}  # the backend, where it is not TensorFlow


def main(_):
    python = PYTHON.value or make_environment()
    out = Path(OUT.value)
    given = json.loads(config_lib.to_json(CONFIG.value))
    kept = json.loads(out.read_text()) if out.exists() else {"config": given, "rows": {}}
    if changed := config_lib.differences(CONFIG.value, kept["config"]):
        raise SystemExit(f"{out} holds measurements of another job: {', '.join(changed)}; choose another --out")
    results = kept["rows"]
    config = sources.resolved(zoo.resolved(CONFIG.value))
    folder = HERE / "peers" / zoo.kind(config).name
    kind = SimpleNamespace(**runpy.run_path(str(folder / "job.py")), folder=folder)
    with tempfile.TemporaryDirectory(prefix="tltrain_peers_") as scratch:
        stored = json.loads(config_lib.to_json(config))
        job = {"scratch": scratch, "config": stored} | {key: stored[key] for key in ("batch_size", "probe", "finetune")}
        job |= kind.export(config, Path(scratch))
        rows = [name for name in (*kind.JOBS, *kind.FORWARD) if not ONLY.value or name in ONLY.value]
        for r in range(ROUNDS.value):
            for name in rows:
                runs = results.setdefault(name, [])
                if len(runs) > r or (r and runs[0]["seconds"] > SLOW):
                    continue
                console.say(f"round {r + 1}: {name} ...")
                runs.append(measure(kind, name, job | {"seed": r}, python))
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(kept, indent=1))
    show(kind, results)


def make_environment():
    """The interpreter of the other libraries, in an environment made when it is not there."""
    folder = HERE / "peers" / ".venv"
    if not (folder / "complete").exists():
        console.say(f"Installing the other libraries into {folder} ...")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", HERE / "peers" / "requirements.txt"], check=True)
        (folder / "complete").touch()
    return str(folder / "bin/python")


def measure(kind, name, job, python):
    """One run of a row, a whole process: its seconds, its largest memory, and what it says itself."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    library, mode = kind.JOBS.get(name) or (kind.FORWARD[name], "forward")
    is_ours = library == "tltrain"
    if mode == "forward":
        interpreter = sys.executable if is_ours else python
        command = [interpreter, HERE / "peers" / "forward.py", kind.folder.name, library, json.dumps(job)]
    elif is_ours:
        command, workdir, environment["TLTRAIN_CACHE"] = tltrain_command(mode, job)
        if mode == "stored" and not Path(environment["TLTRAIN_CACHE"]).exists():  # of a row that is asked for alone
            subprocess.run(tltrain_command("cold", job)[0], env=environment, stdout=subprocess.DEVNULL, check=True)
    else:
        environment["PYTHONPATH"] = str(HERE / "peers")
        command = [python, kind.folder / f"{library.split('_')[0]}_job.py", json.dumps(job | {"mode": mode})]
    if library.startswith("keras"):
        environment["KERAS_BACKEND"] = KERAS.get(library, "tensorflow")
    measured = [sys.executable, HERE / "peers" / "measure.py", *command]
    ended = subprocess.run(measured, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if ended.returncode:
        raise SystemExit(f"{name} failed:\n{ended.stdout[-3000:]}")
    *lines, cost = ended.stdout.strip().splitlines()
    if is_ours and mode != "forward":
        said = tltrain_result(json.loads((workdir / "report.json").read_text()))
    else:
        said = json.loads(lines[-1])
    return json.loads(cost) | said


def tltrain_command(mode, job):
    """The command a user types; cold runs have a cache folder of their own, which the stored one uses again."""
    scratch, seed = Path(job["scratch"]), job["seed"]
    cache = scratch / ("cache_finetune" if mode == "finetune" else "cache") / str(seed)
    workdir = scratch / f"workdir_{mode}_{seed}"
    changes = [argument for argument in sys.argv[1:] if argument.startswith("--config.")]
    given = [f"--config={config_flags.get_config_filename(flags.FLAGS['config'])}", *changes]
    command = [sys.executable, "-m", "tltrain.main", *given, f"--config.seed={seed}", f"--workdir={workdir}"]
    return command + ([] if mode == "finetune" else ["--config.finetune.epochs=0"]), workdir, str(cache)


def tltrain_result(report):
    phases = report["phases"]
    result = {"probe": phases["probe"]["last"]["val"]["accuracy"], "parts": report["seconds"]}
    if "finetune" in phases:
        finetune = phases["finetune"]
        result["finetune"] = finetune["last"]["val"]["accuracy"]
        result["finetune_epochs"] = [finetune["seconds"] / finetune["epochs"]] * finetune["epochs"]
    return result


def show(kind, results):
    """The tables, in Markdown."""
    cores = os.cpu_count()
    print(f"\n{platform.machine()}, {cores} cores; medians of alternating runs\n")
    print("| whole job, one process | runs | seconds | x tltrain cold | peak MiB | val accuracy | fine-tune epoch, s |")
    print("|---|---|---|---|---|---|---|")
    for name in [name for name in kind.JOBS if results.get(name)]:
        runs = results[name]
        seconds = median(runs, "seconds")
        last = "finetune" if "finetune" in runs[0] else "probe"
        rival = "tltrain cold + fine-tune" if last == "finetune" else "tltrain cold"
        ratio = f"{seconds / median(results[rival], 'seconds'):.2f}" if results.get(rival) else "-"
        accuracy = statistics.mean(run[last] for run in runs)
        epoch = statistics.median(min(run["finetune_epochs"]) for run in runs) if last == "finetune" else None
        print(
            f"| {name} | {len(runs)} | {seconds:.1f} | {ratio} | {median(runs, 'mib'):.0f} | {accuracy:.4f} "
            f"| {'' if epoch is None else f'{epoch:.1f}'} |"
        )
    ours = results.get("forward: tltrain")
    if not ours:
        return
    print(
        f"\n| frozen forward pass | {kind.UNIT}/s | share of the matmul peak | features differ by |\n|---|---|---|---|"
    )
    peak, gflop = max(run["peak_gflops"] for run in ours), max(run["gflop"] for run in ours)
    features = np.asarray(ours[0]["features"])
    for name in [name for name in kind.FORWARD if results.get(name)]:
        rate = median(results[name], "per_second")
        difference = np.abs(np.asarray(results[name][0]["features"]) - features).max() / np.abs(features).max()
        print(f"| {name.removeprefix('forward: ')} | {rate:.0f} | {rate * gflop / peak:.0%} | {difference:.0e} |")
    print(f"\nThe peak is {peak:.0f} GFLOP/s; a {kind.UNIT} takes {gflop:.2f} GFLOP.")


def median(runs, key):
    return statistics.median(run[key] for run in runs)


if __name__ == "__main__":
    app.run(main)
