"""Writes the golden files: what Keras' models make of one image, at weights that follow from the place of an array.

PYTHONPATH=tests python tests/golden/make.py [FAMILY ...]
Of each model: every eighth pooled feature, and a checksum of the names, classes and shapes of its layers in order.
"""

import re
import sys
import zlib
from pathlib import Path

import numpy as np

EVERY = 8
_NUMBERED = r"(conv2d|depthwise_conv2d|separable_conv2d|(batch_|layer_)?normalization)(_\d+)?"


def images(size):
    """uint8 `[1, size, size, 3]`."""
    return np.random.default_rng(1).integers(0, 256, (1, size, size, 3)).astype(np.uint8)


def fingerprint(layers):
    """Checksum of `(class, name or None, number of parameters)` of layers, each class in its order."""
    lines = [f"{kind} {name} {size}" for kind, name, size in sorted(layers, key=lambda layer: layer[0])]
    return zlib.crc32("\n".join(lines).encode())


def fingerprint_of_model(model):
    """That of a Keras model; a layer that Keras only numbers has no name."""
    from tltrain.exports.filling import layers_of

    return fingerprint(
        (
            type(layer).__name__,
            None if re.fullmatch(_NUMBERED, layer.name) else layer.name,
            sum(int(np.prod(variable.shape)) for variable in layer.weights if variable.name != "count"),
        )
        for layer in layers_of(model)
    )


def fingerprint_of_backbone(layers, shapes):
    """That of a backbone's `keras_layers()` with leaves of `shapes`."""
    return fingerprint(
        (
            layer.class_name,
            layer.name,
            sum(
                leaf.size
                for tree in shapes.values()
                for leaf in tree.get(layer.path[0], {}).get(layer.path[1], {}).values()
            ),
        )
        for layer in layers
    )


def main(families):
    """Writes a file a family."""
    from references import FAMILIES, PREPROCESS, base, pooled

    from tltrain.models import zoo

    for family in families or FAMILIES:
        arrays = {}
        for name in FAMILIES[family][1]:
            size = zoo.BACKBONES[name]().min_size
            model = base(name, (size, size))
            output = model(PREPROCESS[name](images(size).astype(np.float32)), training=False)
            arrays[f"{name}/features"] = np.asarray(pooled(output))[0, ::EVERY]
            arrays[f"{name}/layers"] = np.uint32(fingerprint_of_model(model))
        path = Path(__file__).parent / f"{family}.npz"
        np.savez_compressed(path, **arrays)
        print(path.name, path.stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
