"""Small transformers of images of each family, and what fills the files of their weights: it follows from names."""

import zlib

import numpy as np

EVERY = 5  # of the features that golden files keep
_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
_DINOV2 = {"model_type": "dinov2", **_SIZES, "mlp_ratio": 2, "patch_size": 14, "image_size": 70}
_REGISTERS = {"model_type": "dinov2_with_registers", "num_register_tokens": 2, "use_swiglu_ffn": True}
# family: its config.json
CONFIGS = {
    "vit": {"model_type": "vit", **_SIZES, "patch_size": 16, "image_size": 64},
    "dinov2": _DINOV2,
    "dinov2_registers": _DINOV2 | _REGISTERS,
    "clip": {"model_type": "clip_vision_model", **_SIZES, "patch_size": 16, "image_size": 64},
    "siglip": {"model_type": "siglip_vision_model", **_SIZES, "patch_size": 16, "image_size": 64},
}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}
_TIMM = {"embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 0, "mlp_ratio": 1.5}
# networks of timm: its options, and the same as fields of ours
TIMM = {
    "vit": ({**_TIMM, "img_size": 64, "patch_size": 16}, {"antialias": True}),
    "deit3": (
        {**_TIMM, "img_size": 64, "patch_size": 16, "no_embed_class": True, "init_values": 1e-5},
        {"antialias": True, "scaled": True, "placed_tokens": False},
    ),
}
# family: height and width of images; positions are resized for the second, to a larger and to a smaller side
SIZES = {"vit": [(64, 64), (96, 48)], "dinov2": [(70, 70), (98, 42)]}


def sizes(name):
    """Those of the images that a network is compared on."""
    return SIZES["dinov2" if name.startswith("dinov2") else "vit"]


def array(name, shape):
    """The array of this name in a file: no factor is near 1 and no offset near 0."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("bias"):
        value = rng.normal(0, 0.3, shape)
    elif len(shape) == 1 and "embedding" not in name:
        value = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("weight") and "position" not in name:
        value = rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))
    else:
        value = rng.normal(0, 0.5, shape)
    return value.astype(np.float32)


def images(size):
    """Scaled pixels float32 `[1, H, W, 3]`."""
    return np.random.default_rng(1).normal(0, 1, (1, *size, 3)).astype(np.float32)
