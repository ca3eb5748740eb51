"""Which backbone: one probe on the cats and dogs for one of each family, at the image size it was trained on.

python -m tltrain.sweep --config configs/backbones.py --workdir runs/backbones --seeds 3
Weights are Keras' ImageNet ones (800 MB in all) and, of the transformers, those of the Hub (1.6 GB), downloaded once.
MobileNetV1 is not among them, for Keras publishes no hash of its file: give its path as `model.weights` in an arm.
"""

from tltrain.config import default


def get_config():
    config = default()
    config.data.source = "tfds:cats_vs_dogs"
    config.probe.epochs = 5
    return config


def sweep():
    for backbone in (
        "mobilenet_v2",  # the first arm is what the others are compared with
        "vgg16",
        "resnet50",
        "resnet50_v2",
        "inception_v3",
        "inception_resnet_v2",
        "xception",
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
        yield {"model.backbone": backbone}
