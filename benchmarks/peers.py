"""The tutorial's job beside the libraries a researcher would use instead: whole processes, alternating, medians.

    python benchmarks/peers.py                       # images and weights of the quickstart
    python benchmarks/peers.py --config configs/cats_dogs.py --config.data.data_dir=...   # any job of two phases

Run by the Python that has tltrain (`.venv/bin/python` after `bash launch/setup.sh`). The first time an environment of
their own is made for the others, 8 GB from PyPI, in benchmarks/peers/.venv. Two cores: 27 minutes a round; Keras on
JAX, at about ten images a second, comes on top, once. Leave the machine alone meanwhile. Round r has seed r.

Every library gets the same images, arrays, rates, epochs and batches. Those that do not read TFDS get the encoded
images as files, written beforehand. Seconds are those of the whole process; memory is what its processes hold at most
together.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from tltrain import config as config_lib
from tltrain.models import freeze, zoo
from tltrain.runtime import console
from tltrain.training.setup import read_data
from tltrain.weights import download, keras_weights

HERE = Path(__file__).parent
CONFIG = config_flags.DEFINE_config_file("config", str(HERE / "textile.py"), "The job.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds; each has its seed.")
PYTHON = flags.DEFINE_string("peers_python", "", "Interpreter that has the other libraries; default: one made here.")
ONLY = flags.DEFINE_list("only", [], "Names of rows to run; default: all.")
OUT = flags.DEFINE_string("out", "runs/peers.json", "Every measurement, as JSON; an earlier one there is continued.")
SLOW = 600  # seconds above which a row runs in the first round alone

KERAS = {"keras": "tensorflow", "keras_jax": "jax"}
JOBS = {
    "Keras fit (TensorFlow)": ("keras", "fit"),
    "Keras fit (JAX)": ("keras_jax", "fit"),
    "Keras features first": ("keras", "features"),
    "PyTorch": ("torch", "fit"),
    "PyTorch features first": ("torch", "features"),
    "tltrain cold": ("tltrain", "cold"),
    "tltrain features stored": ("tltrain", "stored"),
    "Keras features first + fine-tune": ("keras", "finetune"),
    "PyTorch features first + fine-tune": ("torch", "finetune"),
    "tltrain cold + fine-tune": ("tltrain", "finetune"),
}
FORWARD = {
    "forward: Keras predict (TensorFlow)": "keras",
    "forward: Keras predict (JAX)": "keras_jax",
    "forward: PyTorch": "torch",
    "forward: onnxruntime": "onnxruntime",
    "forward: tltrain": "tltrain",
}


def main(_):
    python = PYTHON.value or make_environment()
    out = Path(OUT.value)
    given = json.loads(config_lib.to_json(CONFIG.value))
    kept = json.loads(out.read_text()) if out.exists() else {"config": given, "rows": {}}
    if changed := config_lib.differences(CONFIG.value, kept["config"]):
        raise SystemExit(f"{out} holds measurements of another job: {', '.join(changed)}; choose another --out")
    results = kept["rows"]
    with tempfile.TemporaryDirectory(prefix="tltrain_peers_") as scratch:
        job = export(zoo.resolved(CONFIG.value), Path(scratch))
        rows = [name for name in (*JOBS, *FORWARD) if not ONLY.value or name in ONLY.value]
        for r in range(ROUNDS.value):
            for name in rows:
                runs = results.setdefault(name, [])
                if len(runs) > r or (r and runs[0]["seconds"] > SLOW):
                    continue
                console.say(f"round {r + 1}: {name} ...")
                runs.append(measure(name, job | {"seed": r}, python))
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(kept, indent=1))
    show(results)


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


def export(config, scratch):
    """The job in words, with its images and arrays in files for the other libraries."""
    data = read_data(config)
    for name in ("train", "val"):
        split = data.splits[name]
        for i, label in enumerate(split.labels):
            folder = scratch / "images" / name / data.class_names[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:06d}.jpg").write_bytes(split.read(i))
    model = zoo.create(config, len(data.class_names))
    source = config.model.weights
    path = download.imagenet(model.backbone) if source == "imagenet" else Path(source).expanduser()
    shapes = {name: tree["backbone"] for name, tree in zoo.shapes(model).items()}
    loaded = keras_weights.load(path, model.backbone.keras_layers(), shapes, config.model.sha256).variables
    np.savez(scratch / "weights.npz", **dict(keras_arrays(model, loaded)))
    stages = model.backbone.stages
    kind, _, place = config.data.source.partition(":")
    return {
        "scratch": str(scratch),
        "folder": str(scratch / "images"),
        "tfds": place if kind == "tfds" else "",
        "data_dir": config.data.data_dir,
        "splits": config.data.splits,
        "class_names": data.class_names,
        "image_size": config.data.image_size,
        "batch_size": config.batch_size,
        "weights": str(scratch / "weights.npz"),
        "weights_file": str(path),
        "epochs": config.probe.epochs,
        "learning_rate": config.probe.learning_rate,
        "finetune_epochs": config.finetune.epochs,
        "finetune_learning_rate": config.finetune.learning_rate,
        "trainable_from": stages[freeze.cut(stages, config.finetune.freeze_until)],
    }


def keras_arrays(model, variables):
    """`LAYER/i` and the array that Keras' `get_weights()[i]` has there."""
    for layer in model.backbone.keras_layers():
        params, stats = variables["params"], variables["batch_stats"]
        for key in layer.path:
            params, stats = params[key], stats.get(key, {})
        if layer.class_name == "BatchNormalization":
            arrays = [params["scale"], params["bias"], stats["mean"], stats["var"]]
        else:
            depthwise = layer.class_name == "DepthwiseConv2D"
            arrays = [params["kernel"].transpose(0, 1, 3, 2) if depthwise else params["kernel"]]
        for i, array in enumerate(arrays):
            yield f"{layer.name}/{i}", array


def measure(name, job, python):
    """One run of a row, a whole process: its seconds, its largest memory, and what it says itself."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    if name in FORWARD:
        library = FORWARD[name]
        interpreter = sys.executable if library == "tltrain" else python
        command = [interpreter, HERE / "peers" / "forward.py", library, json.dumps(job)]
    else:
        library, mode = JOBS[name]
        command = [python, HERE / "peers" / f"{library.split('_')[0]}_job.py", json.dumps(job | {"mode": mode})]
    if library in KERAS:
        environment["KERAS_BACKEND"] = KERAS[library]
    if name in JOBS and library == "tltrain":
        command, workdir, environment["TLTRAIN_CACHE"] = tltrain_command(mode, job)
    measured = [sys.executable, HERE / "peers" / "measure.py", *command]
    ended = subprocess.run(measured, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if ended.returncode:
        raise SystemExit(f"{name} failed:\n{ended.stdout[-3000:]}")
    *lines, cost = ended.stdout.strip().splitlines()
    if name in JOBS and library == "tltrain":
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


def show(results):
    """The tables, in Markdown."""
    cores = os.cpu_count()
    print(f"\n{platform.machine()}, {cores} cores; medians of alternating runs\n")
    print("| whole job, one process | runs | seconds | x tltrain cold | peak MiB | val accuracy | fine-tune epoch, s |")
    print("|---|---|---|---|---|---|---|")
    for name in [name for name in JOBS if results.get(name)]:
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
    print("\n| frozen forward pass | img/s | share of the matmul peak |")
    print("|---|---|---|")
    ours = results.get("forward: tltrain", [])
    peak = max((run["peak_gflops"] for run in ours), default=float("nan"))
    gflop = max((run["image_gflop"] for run in ours), default=float("nan"))
    for name in [name for name in FORWARD if results.get(name)]:
        rate = median(results[name], "images_per_second")
        print(f"| {name.removeprefix('forward: ')} | {rate:.0f} | {rate * gflop / peak:.0%} |")
    print(f"\nThe peak is {peak:.0f} GFLOP/s; an image takes {gflop:.2f} GFLOP.")


def median(runs, key):
    return statistics.median(run[key] for run in runs)


if __name__ == "__main__":
    app.run(main)
