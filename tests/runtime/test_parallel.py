"""Eight simulated devices, under `jit` and `pmap`, agree with one."""

import json
import os
import subprocess
import sys

import pytest
from conftest import graded
from devices import in_process, on_devices

from tltrain import config as config_lib
from tltrain.models import zoo

VARIANTS = {
    "plain": {},
    "one kind of leaf": {"probe.epochs": 0, "finetune.train_only": "batch_norm"},
    "factors": {
        "probe.epochs": 0,
        "finetune.train_only": "lora",
        "finetune.lora.targets": ("all",),
        "finetune.ema": 0.5,
    },
    "strategies": {
        "finetune.mixup": 0.4,
        "finetune.cutmix": 1.0,
        "finetune.ema": 0.5,
        "finetune.layer_decay": 0.7,
        "finetune.l2_sp": 0.1,
        "loss.label_smoothing": 0.1,
    },
}


@pytest.mark.parametrize("variant", graded(VARIANTS, ["one kind of leaf"]))
def test_eight_devices_agree_with_one(tiny, tmp_path, variant):
    """By SGD: Adam would turn the rounding of a gradient near zero into a step of full size."""
    tiny.probe.epochs = 1
    tiny.update_from_flattened_dict(VARIANTS[variant])
    tiny.batch_size = 16
    tiny.model.dropout = 0.3
    tiny.finetune.update(batch_norm="train", optimizer="sgd", learning_rate=1e-2, clip_norm=1.0)
    one, *others = on_devices(tiny, tmp_path, 8)
    for eight in others:
        for phase in one:
            for a, b in zip(one[phase]["history"], eight[phase]["history"], strict=True):
                assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], rel=1e-4)
                assert a["val"]["loss"] == pytest.approx(b["val"]["loss"], rel=1e-4)
                assert (12 * b["val"]["accuracy"]) == pytest.approx(round(12 * b["val"]["accuracy"]))


COLLECTIVES = """
import json, re, sys
from pathlib import Path
import jax
from conftest import TINY
from tltrain import config as config_lib
from tltrain.experiment import train
from tltrain.models import zoo

compile, texts = jax.stages.Lowered.compile, []

def noted(lowered, *arguments, **options):
    made = compile(lowered, *arguments, **options)
    texts.append(made.as_text())
    return made

jax.stages.Lowered.compile = noted
zoo.BACKBONES["tiny"] = TINY
train.run(config_lib.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]))
kinds = "all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"
print([[len(re.findall(rf"= \\S.* {kind}(?:-start)?\\(", text)) for kind in kinds] for text in texts])
"""


def test_one_sum_a_step_is_all_that_devices_exchange(tiny, tmp_path):
    """No pixel, activation or parameter is gathered, neither in a training step nor in a forward pass."""
    tiny.model.dropout, tiny.finetune.clip_norm = 0.3, 1.0
    done = in_process(COLLECTIVES, 8, config_lib.to_json(tiny), tmp_path / "run")
    found = json.loads(done.splitlines()[-1])
    assert all(sum(counts[1:]) == 0 and counts[0] <= 1 for counts in found), found
    assert sum(counts[0] for counts in found) == 3, "the training steps of both phases, and the evaluation of heads"


def test_keras_layers_are_found_outside_of_a_step():
    """Where the axis that statistics are averaged over does not stand."""
    assert zoo.create(config_lib.default(), 1).backbone.keras_layers()


PROGRAMS = """
import sys, warnings
from pathlib import Path
import jax
from tltrain.runtime import parallel, sealed

warnings.simplefilter("error")
parallel.cache_compilations(Path(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
x = jax.numpy.arange(8.0)
for damage in (lambda whole: whole, lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: whole[1:]):
    jax.clear_caches()
    assert jax.jit(lambda x: (x @ x + 1) * 2)(x) == 282
    for path in Path(sys.argv[1]).rglob("jit__lambda*"):
        assert sealed.read(path), "it is whole again"
        path.write_bytes(damage(path.read_bytes()))
assert not sealed.read(path)
"""


def test_a_compiled_program_that_is_damaged_is_compiled_and_kept_again(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", PROGRAMS, str(tmp_path)], env=environment, check=True)
