"""What `benchmarks/peers.py` runs for images: its rows, and the job in words and files for the other libraries."""

import numpy as np

from tltrain.models import freeze, zoo
from tltrain.training.setup import read_data
from tltrain.weights import reader

UNIT = "img"
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


def export(config, scratch):
    """What the other libraries are told of the job, its images and arrays in files below `scratch`."""
    data = read_data(config)
    for name in ("train", "val"):
        split = data.splits[name]
        for i, label in enumerate(split.labels):
            folder = scratch / "images" / name / data.class_names[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:06d}.jpg").write_bytes(split.read(i))
    model = zoo.create(config, len(data.class_names))
    path = reader.path_of(config.model.weights, model.backbone)
    shapes = {name: tree["backbone"] for name, tree in zoo.shapes(model).items()}
    loaded = reader.load(path, model.backbone, shapes, config.model.sha256)
    np.savez(scratch / "weights.npz", **dict(keras_arrays(model, loaded.variables)))
    stages = model.backbone.stages
    kind, _, place = config.data.source.partition(":")
    return {
        "folder": str(scratch / "images"),
        "tfds": place if kind == "tfds" else "",
        "data_dir": config.data.data_dir,
        "splits": config.data.splits,
        "num_classes": len(data.class_names),
        "image_size": config.data.image_size,
        "weights": str(scratch / "weights.npz"),
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
