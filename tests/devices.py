"""Runs on simulated devices, in a process of their own: on one, on all by `jit`, and on all by `pmap`."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import QUICKLY_COMPILED

from tltrain.config import flatten

SCRIPT = """
import sys, json
from pathlib import Path
import jax
from conftest import TINY
from tltrain import config as config_lib
from tltrain.experiment import train
from tltrain.models import zoo
zoo.BACKBONES["tiny"] = TINY
flat = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(sys.argv[1]).items()}
folder, wanted = Path(sys.argv[2]), int(sys.argv[3])
devices, results = jax.local_devices(), []
assert len(devices) == wanted
for count, parallel in ((1, "jit"), (wanted, "jit"), (wanted, "pmap")):
    jax.local_devices = lambda: devices[:count]
    config, name = config_lib.default(), f"{parallel}{count}"
    config.update_from_flattened_dict(flat | {"parallel": parallel, "features.dir": str(folder / f"features_{name}")})
    results.append(train.run(config, folder / name)["phases"])
print(json.dumps(results))
"""


def in_process(script, count, *arguments):
    """What the Python `script` prints in a process with `count` devices."""
    flags = f"--xla_force_host_platform_device_count={count} {QUICKLY_COMPILED}"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_devices(config, folder, count):
    """The `phases` of the report of `config` on one device, and twice on `count`."""
    return json.loads(in_process(SCRIPT, count, json.dumps(flatten(config)), folder, count).splitlines()[-1])
