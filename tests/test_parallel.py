"""Eight simulated devices, under `jit` and `pmap`, agree with one. Each run is a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, json
from pathlib import Path
from ml_collections import ConfigDict
from conftest import TINY
from tltrain import config as config_lib, train
from tltrain.models import zoo
from tltrain.workdir import Clock
zoo.BACKBONES["tiny"] = TINY
config = config_lib.default()
flat = json.loads(sys.argv[1])
config.update_from_flattened_dict({key: tuple(v) if isinstance(v, list) else v for key, v in flat.items()})
print(json.dumps(train.run(config, Path(sys.argv[2]), Clock())["phases"]))
"""


def run(config, path, devices, parallel):
    from tltrain.config import flatten

    flat = {**flatten(config), "parallel": parallel, "features.dir": str(path / "features")}
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(flat), str(path / "run")],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_eight_devices_agree_with_one(tiny, tmp_path):
    """By SGD: Adam would turn the rounding of a gradient near zero into a step of full size."""
    tiny.probe.epochs = 1
    tiny.batch_size = 16
    tiny.model.dropout = 0.3
    tiny.finetune.update(batch_norm="train", optimizer="sgd", learning_rate=1e-2, clip_norm=1.0)
    one = run(tiny, tmp_path / "one", 1, "jit")
    for parallel in ("jit", "pmap"):
        eight = run(tiny, tmp_path / parallel, 8, parallel)
        for phase in one:
            for a, b in zip(one[phase]["history"], eight[phase]["history"], strict=True):
                assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], rel=1e-4)
                assert a["val"]["loss"] == pytest.approx(b["val"]["loss"], rel=1e-4)
                assert sum(map(sum, b["val"]["confusion"])) == 12
