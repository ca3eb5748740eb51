"""A finished run as a model of plain Keras layers: the body is Keras' own network, the rest stands around it."""

import os
from typing import Any

import numpy as np

from tltrain import weights
from tltrain.data import import_tensorflow
from tltrain.errors import WeightsError
from tltrain.export_resize import resize
from tltrain.finished import Finished
from tltrain.models.backbone import scaled


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
    keras, model, data = import_keras(), run.model, run.config.data
    name, arguments = model.backbone.keras_application()
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    pixels = resize(keras.ops, keras.ops.cast(images, "float32"), data.image_size, data.resize)
    body = getattr(keras.applications, name)(
        weights=None, include_top=False, pooling="avg", input_tensor=scaled(pixels, model.pixels), **arguments
    )
    head = keras.layers.Dense(model.num_outputs, name="predictions")
    logits = head(keras.layers.Dropout(model.dropout, name="dropout")(body.output))
    if model.num_outputs == 1:
        outputs = keras.ops.sigmoid(keras.ops.concatenate([-logits, logits], -1))
    else:
        outputs = keras.ops.softmax(logits)
    _fill(body, run)
    head.set_weights([run.variables["params"]["head"][leaf] for leaf in ("kernel", "bias")])
    return keras.Model(images, outputs, name=run.config.model.backbone)


def _fill(body, run):
    """Sets every weight of the Keras model `body` to that of the backbone, and its BatchNorm momentum."""
    backbone = run.model.backbone
    theirs = {(layer.name, weight.name): weight for layer in body.layers for weight in layer.weights}
    variables = {name: tree["backbone"] for name, tree in run.variables.items()}
    for leaf in weights.expected_leaves(backbone.keras_layers(), variables):
        weight = theirs.pop((leaf.keras_layer, leaf.keras_names[-1]), None)
        if weight is None or tuple(weight.shape) != leaf.keras_shape:
            raise WeightsError(_misfit(run, f"{leaf.keras_layer}/{leaf.keras_names[-1]}"))
        array = variables
        for key in leaf.path:
            array = array[key]
        weight.assign(np.asarray(array).transpose(leaf.transpose) if leaf.transpose else array)
    if theirs:
        raise WeightsError(_misfit(run, "/".join(next(iter(theirs)))))
    if backbone.batch_norm_momentum is not None:
        for layer in body.layers:
            if hasattr(layer, "moving_mean"):
                layer.momentum = backbone.batch_norm_momentum


def _misfit(run, weight):
    return (
        f"{run.config.model.backbone!r} is not the network that Keras builds; at {weight}; "
        "export it as stablehlo, or state its Keras network in keras_application"
    )
