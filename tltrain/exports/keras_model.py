"""A finished run as a model of plain Keras layers: the body is Keras' own network, the rest stands around it."""

import functools
import operator
import os
from typing import Any

import numpy as np

from tltrain.data.tensorflow import import_tensorflow
from tltrain.errors import WeightsError
from tltrain.experiment.finished import Finished
from tltrain.models.efficientnet import normalization_scale
from tltrain.models.image_backbone import scaled
from tltrain.weights import keras_layout

_OTHER_NAMES = {"mobilenetv1": "mobilenet"}  # in keras.applications, of what the zoo names otherwise


def import_keras() -> Any:
    """Keras, on TensorFlow unless `$KERAS_BACKEND` names another backend."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import_tensorflow()
    import keras

    return keras


def build(run: Finished) -> Any:
    """A functional `keras.Model`: images, uint8 `[B, H, W, 3]`, to probabilities, float32 `[B, num_classes]`.

    Resize and pixel scaling are operations in front of the network; layers carry the names of `keras.applications`, are
    all trainable and hold the BatchNorm momentum of the run. The head is `predictions`.

    Raises:
        WeightsError: the network of `keras.applications` has other weights than the backbone.
    """
    keras, model = import_keras(), run.model
    name, arguments = _application(run)
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    pixels = run.kind.rows_of(keras.ops, keras.ops.cast(images, "float32"))
    body = getattr(keras.applications, name)(
        weights=None, include_top=False, pooling="avg", input_tensor=scaled(pixels, model.backbone.pixels), **arguments
    )
    head = keras.layers.Dense(model.num_outputs, name="predictions")
    logits = head(keras.layers.Dropout(model.dropout, name="dropout")(body.output))
    outputs = run.task.activation(keras.ops, logits)
    _fill(body, run)
    head.set_weights([run.variables["params"]["head"][leaf] for leaf in ("kernel", "bias")])
    return keras.Model(images, outputs, name=run.config.model.backbone)


def _application(run):
    """The function of `keras.applications` that makes the network of `run`, and its arguments but size and weights."""
    backbone = run.model.backbone
    arguments = {"alpha": backbone.alpha} if hasattr(backbone, "alpha") else {}
    name = run.config.model.backbone.removesuffix(f"_{backbone.alpha}") if arguments else run.config.model.backbone
    applications = import_keras().applications
    found = {known.lower(): known for known in dir(applications) if callable(getattr(applications, known))}
    name = name.replace("_", "")
    if (name := _OTHER_NAMES.get(name, name)) not in found:
        raise WeightsError(_misfit(run, "its name"))
    return found[name], arguments


def _fill(body, run):
    """Sets every weight of the Keras model `body` to that of the backbone, and its BatchNorm momentum.

    Layers of a class have one order in both; names will not do, since Keras only numbers some of them.
    """
    backbone = run.model.backbone
    variables = {name: tree["backbone"] for name, tree in run.variables.items()}
    ours = backbone.keras_layers()
    leaves = keras_layout.leaves(ours, variables)
    theirs = [layer for layer in body.layers if layer.weights]
    for class_name in {layer.class_name for layer in ours} | {type(layer).__name__ for layer in theirs}:
        layers = [layer for layer in ours if layer.class_name == class_name]
        filled = [layer for layer in theirs if type(layer).__name__ == class_name]
        if len(layers) != len(filled):
            raise WeightsError(_misfit(run, f"{len(filled)} layers {class_name}, here {len(layers)}"))
        for layer, keras_layer in zip(layers, filled, strict=True):
            _fill_layer(run, keras_layer, [leaf for leaf in leaves if leaf.layer == layer], variables)
            if class_name == "BatchNormalization" and backbone.batch_norm_momentum is not None:
                keras_layer.momentum = backbone.batch_norm_momentum


def _fill_layer(run, keras_layer, leaves, variables):
    weights = {weight.name: weight for weight in keras_layer.weights if weight.name != "count"}
    if weights.keys() != {leaf.keys[-2] for leaf in leaves}:
        raise WeightsError(_misfit(run, f"{keras_layer.name}: {', '.join(weights)}"))
    for leaf in leaves:
        weight = weights[leaf.keys[-2]]
        if tuple(weight.shape) != leaf.keras_shape:
            raise WeightsError(_misfit(run, f"{keras_layer.name}/{weight.name}"))
        array = np.asarray(functools.reduce(operator.getitem, leaf.path, variables))
        if leaf.layer.class_name == "Normalization" and weight.name == "variance":
            array = 1 / np.square(normalization_scale(array))
        weight.assign(array.transpose(leaf.transpose) if leaf.transpose else array)
    if hasattr(keras_layer, "finalize_state"):  # of Normalization, which keeps what follows from its weights
        keras_layer.finalize_state()


def _misfit(run, weight):
    return f"{run.config.model.backbone!r} is not the network that Keras builds; at {weight}; export it as stablehlo"
