"""Forward passes of the zoo beside Keras, PyTorch and onnxruntime: alternating processes, medians.

    python benchmarks/zoo.py                      # one of each family, batches of 8 and 32: a table in Markdown
    python benchmarks/zoo.py --only=resnet50 --rounds=1
    python benchmarks/zoo.py --peers_python=benchmarks/peers/.venv/bin/python    # PyTorch and onnxruntime too
    python benchmarks/zoo.py --compile            # seconds to trace and to compile: frozen pass, steps of a fine-tune
    python benchmarks/zoo.py --stages=resnet50    # milliseconds and GFLOP/s of each stage, on one core

Run by the Python that has tltrain (`.venv/bin/python` after `bash launch/setup.sh`). All weights are random, images are
in memory. What `keras.applications` does not have is measured in tltrain alone. On two cores a round takes 20 minutes
and more; what takes more than twice the time of the fastest runs in the first round alone. `benchmarks/zoo.md` is a
result, with what limits each family.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from tltrain.config import default
from tltrain.data.kinds.images import Images
from tltrain.models import freeze, zoo
from tltrain.models.classifier import frozen_constants, run_frozen
from tltrain.models.layers import forward_options
from tltrain.runtime import console
from tltrain.training import optim, steps
from tltrain.training.tasks.classification import Classification

ONLY = flags.DEFINE_list("only", [], "Some of the backbones of the table; with --compile any.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of alternating processes.")
COMPILE = flags.DEFINE_bool("compile", False, "Time tracing and compilation alone.")
STAGES = flags.DEFINE_string("stages", "", "A backbone whose stages are timed, on one core.")
PYTHON = flags.DEFINE_string("peers_python", "", "Interpreter with torch, transformers, onnxscript and onnxruntime.")
OUT = flags.DEFINE_string("out", "runs/zoo.json", "Every measurement, as JSON; an earlier one there is continued.")

PEERS = Path(__file__).parent / "peers"
KERAS = {  # one of each family, and its name in keras.applications; None: it is not there
    "vgg16": "VGG16",
    "resnet50": "ResNet50",
    "resnet50_v2": "ResNet50V2",
    "inception_v3": "InceptionV3",
    "inception_resnet_v2": "InceptionResNetV2",
    "xception": "Xception",
    "mobilenet_v1": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3_small": "MobileNetV3Small",
    "densenet121": "DenseNet121",
    "nasnet_mobile": "NASNetMobile",
    "efficientnet_b0": "EfficientNetB0",
    "efficientnet_v2_b0": "EfficientNetV2B0",
    "convnext_tiny": "ConvNeXtTiny",
    "vit_small_16": None,
    "vit_base_16": None,
    "dinov2_small": None,
    "clip_base_32": None,
    "siglip_base_16": None,
}
# those that are timed in PyTorch and onnxruntime too: their config.json in transformers, for images of their own size
HUGGING_FACE = {
    "vit_small_16": {"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "vit_base_16": {"model_type": "vit"},
    "dinov2_small": {"model_type": "dinov2", "hidden_size": 384, "num_attention_heads": 6, "patch_size": 14},
    "convnext_tiny": {"model_type": "convnext"},
}
LIBRARIES = {
    "Keras on TensorFlow": "tensorflow",
    "Keras on JAX": "jax",
    "PyTorch": "torch",
    "onnxruntime": "onnxruntime",
    "tltrain": "tltrain",
}
OF_PEERS = ("torch", "onnxruntime")
BATCH_SIZES = ("8", "32")


def main(_):
    images = [name for name, make in zoo.BACKBONES.items() if make().kind is Images]
    known = images if COMPILE.value or STAGES.value else list(KERAS)
    names = [STAGES.value] if STAGES.value else ONLY.value or known
    if unknown := sorted(set(names) - set(known)):
        raise SystemExit(f"unknown backbone {', '.join(unknown)}; known: {', '.join(known)}")
    if STAGES.value:
        return time_stages(names[0])
    if COMPILE.value:
        return time_compilation(names)
    out = Path(OUT.value)
    results = json.loads(out.read_text()) if out.exists() else {}
    for r in range(ROUNDS.value):
        for name in names:
            for title, library in LIBRARIES.items():
                if library != "tltrain" and name_there(library, name) is None:
                    continue
                runs = results.setdefault(name, {}).setdefault(title, [])
                if len(runs) > r or (r and slow(results[name], title)):
                    continue
                console.say(f"round {r + 1}: {name}, {title} ...")
                runs.append(measure(library, name))
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(results, indent=1))
    return show({name: results[name] for name in names})


def name_there(library, name):
    """What a library calls a backbone; None where it has it not, or is not asked for it."""
    if library == "tltrain":
        return name
    if library not in OF_PEERS:
        return KERAS[name]
    return json.dumps(HUGGING_FACE[name]) if PYTHON.value and name in HUGGING_FACE else None


def measure(library, name):
    """One process: `{"images_per_second": {batch size: ...}}`."""
    height = str(model_of(name)[2].shape[1])
    python = PYTHON.value if library in OF_PEERS else sys.executable
    command = [python, PEERS / "zoo_forward.py", library, name_there(library, name), height, *BATCH_SIZES]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": library}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise SystemExit(f"{library}, {name} failed:\n{ended.stderr[-3000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def median(runs, size):
    return statistics.median(run["images_per_second"][size] for run in runs)


def slow(runs, title):
    fastest = max(median(found, BATCH_SIZES[-1]) for found in runs.values() if found)
    return 2 * median(runs[title], BATCH_SIZES[-1]) < fastest


def show(results):
    lines = [f"| backbone | M parameters | GFLOP an image | batch | {' | '.join(LIBRARIES)} | x the fastest other |"]
    lines.append(f"|---|{'---:|' * (lines[0].count('|') - 2)}")
    for name, runs in results.items():
        model, shapes, x = model_of(name)
        one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
        plain = jax.jit(functools.partial(whole, model)).lower(shapes | {"constants": {}}, one)
        gflop = plain.cost_analysis()["flops"] / 1e9
        parameters = sum(leaf.size for leaf in jax.tree.leaves({k: tree["backbone"] for k, tree in shapes.items()}))
        for size in BATCH_SIZES:
            *others, ours = (median(runs[title], size) if title in runs else 0.0 for title in LIBRARIES)
            rates = " | ".join(f"{rate:.1f}" if rate else "" for rate in (*others, ours))
            times = f"{ours / max(others):.2f}" if any(others) else ""
            sizes = f"{parameters / 1e6:.1f} | {gflop:.2f} | {size}"
            lines.append(f"| {name} | {sizes} | {rates} | {times} |")
    print("\n".join(lines))


def whole(model, variables, x):
    return run_frozen(model, variables, x, 0, len(model.backbone.stages))


def config_of(name, **finetune):
    """That of a fine-tune from random weights."""
    config = default()
    config.model.update(backbone=name, weights="random")
    config.finetune.update(epochs=1, **finetune)
    return zoo.resolved(config)


def model_of(name, batch_size=8):
    """The model, the shapes of its variables, and those of a batch of its own size."""
    config = config_of(name)
    model = zoo.create(config, 1)
    return model, zoo.shapes(model), jax.ShapeDtypeStruct((batch_size, *config.data.image_size, 3), np.uint8)


def time_train_step(name, freeze_until):
    """Seconds to trace and to compile the step of a fine-tune of all stages after `freeze_until`, for batches of 8."""
    config, (model, shapes, x) = config_of(name, freeze_until=freeze_until), model_of(name)
    task = Classification.of(config, ("cat", "dog"), None)
    plan = freeze.of_phase(config, "finetune", model.backbone.stages)
    tx = optim.make(config.finetune, optim.make_schedule(config.finetune, 100), plan, plan)
    state = jax.eval_shape(lambda v: steps.create_state(v["params"], v["batch_stats"], tx, plan, 0.0), shapes)
    inputs = jax.eval_shape(lambda v, x: run_frozen(model, v, x, 0, plan.cut), shapes, x) if plan.cut else x
    rows = {"label": np.int32, "mask": bool, "index": np.int32}
    batch = {"inputs": inputs} | {key: jax.ShapeDtypeStruct(x.shape[:1], dtype) for key, dtype in rows.items()}
    recipe = steps.recipe(config, "finetune", task, plan, plan.cut)
    step = functools.partial(steps.train_step, model=model, tx=tx, recipe=recipe)
    started = time.perf_counter()
    jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    return time.perf_counter() - started


def time_compilation(names):
    """Of programs for batches of 8, each backbone in a process of its own; nothing compiled is kept."""
    print("| backbone | image | frozen: trace, s | compile, s | step of the last quarter, s | of all, s |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    if len(names) > 1:
        for name in names:
            command = [sys.executable, __file__, "--compile", f"--only={name}"]
            ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(ended.stdout.splitlines()[-1], flush=True)
        return
    started = time.perf_counter()
    model, shapes, x = model_of(names[0])
    stop = len(model.backbone.stages)
    make = jax.jit(functools.partial(frozen_constants, model, x=x, start=0, stop=stop))
    shapes = shapes | jax.eval_shape(make, shapes)
    making = make.lower(zoo.shapes(model))
    jitted = jax.jit(functools.partial(whole, model), compiler_options=forward_options())
    lowered, traced = jitted.lower(shapes, x), time.perf_counter()
    lowered.compile()
    making.compile()
    compiled = time.perf_counter() - traced
    quarter, whole_network = (time_train_step(names[0], until) for until in ("auto", None))
    print(
        f"| {names[0]} | {x.shape[1]}x{x.shape[2]} | {traced - started:.1f} | {compiled:.1f} | {quarter:.1f} | "
        f"{whole_network:.1f} |"
    )


def shape_of(tree):
    """Of an example of a batch, whose arrays may be several."""
    return ", ".join("x".join(map(str, leaf.shape[1:])) for leaf in jax.tree.leaves(tree))


def time_stages(name):
    """Each stage of a batch of 8 by itself, medians of five."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX starts its threads
    model, _, x = model_of(name)
    variables = zoo.init(model, 0, None)
    y = jax.numpy.asarray(np.random.default_rng(0).integers(0, 256, x.shape, np.uint8))
    print("| stage | input | output | ms an image | GFLOP/s |\n|---|---|---|---:|---:|")
    for i, stage in enumerate(model.backbone.stages):
        make = jax.jit(functools.partial(frozen_constants, model, x=y, start=i, stop=i + 1))
        constants = variables | make(variables)
        run = jax.jit(functools.partial(run_frozen, model, start=i, stop=i + 1), compiler_options=forward_options())
        plain = jax.jit(functools.partial(run_frozen, model, start=i, stop=i + 1))
        one = jax.tree.map(lambda leaf: leaf[:1], y)
        gflop = plain.lower(variables | {"constants": {}}, one).cost_analysis()["flops"] / 1e9
        compiled, seconds = run.lower(constants, y).compile(), []
        for _ in range(6):
            started = time.perf_counter()
            result = jax.block_until_ready(compiled(constants, y))
            seconds.append((time.perf_counter() - started) / len(x))
        spent = statistics.median(seconds[1:])
        print(f"| {stage} | {shape_of(y)} | {shape_of(result)} | {spent * 1e3:.2f} | {gflop / spent:.0f} |", flush=True)
        y = result


if __name__ == "__main__":
    app.run(main)
