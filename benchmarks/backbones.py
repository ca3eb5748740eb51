"""Backbones side by side where ImageNet weights of MobileNetV2 alone are at hand: one of each family, on the textile.

python -m tltrain.sweep --config benchmarks/backbones.py --workdir runs/backbones_random
The arms of configs/backbones.py, each a probe at the image size of its backbone; those that say `weights=random` show
img/s, parameters and seconds, which do not depend on weights, and an accuracy that is only to be held against that of
MobileNetV2 from random weights, the second arm. For other images: --config.data.source=tfds:cats_vs_dogs and, where
TFDS keeps it elsewhere, --config.data.data_dir=DIR.
"""

import runpy
from pathlib import Path

TEXTILE = Path(__file__).with_name("textile.py")


def get_config():
    config = runpy.run_path(str(TEXTILE))["get_config"]()
    config.data.image_size = None
    config.finetune.epochs = 0
    return config


def sweep():
    yield {"model.backbone": "mobilenet_v2"}
    for backbone in (
        "mobilenet_v2",
        "vgg16",
        "resnet50",
        "resnet50_v2",
        "inception_v3",
        "inception_resnet_v2",
        "xception",
        "mobilenet_v1",
        "mobilenet_v3_small",
        "densenet121",
        "nasnet_mobile",
        "efficientnet_b0",
        "efficientnet_v2_b0",
        "convnext_tiny",
        "vit_small_16",
        "dinov2_small",
        "clip_base_32",
        "siglip_base_16",
    ):
        yield {"model.backbone": backbone, "model.weights": "random"}
