"""Backbones side by side where ImageNet weights of MobileNetV2 alone are at hand: one of each family, on the textile.

python -m tltrain.sweep --config benchmarks/backbones.py --workdir runs/backbones_random
The arms of configs/backbones.py, each a probe at the image size of its backbone; those that say `weights=random` show
img/s, parameters and seconds, which do not depend on weights, and an accuracy that is only to be held against that of
MobileNetV2 from random weights, the second arm. For other images: --config.data.source=tfds:cats_vs_dogs and, where
TFDS keeps it elsewhere, --config.data.data_dir=DIR.
"""

import runpy
from pathlib import Path

HERE = Path(__file__).parent
ARMS = HERE.parent / "configs" / "backbones.py"


def get_config():
    config = runpy.run_path(str(HERE / "textile.py"))["get_config"]()
    config.data.image_size = None
    config.finetune.epochs = 0
    return config


def sweep():
    yield {"model.backbone": "mobilenet_v2"}
    for arm in (*runpy.run_path(str(ARMS))["sweep"](), {"model.backbone": "mobilenet_v1"}):
        yield arm | {"model.weights": "random"}
