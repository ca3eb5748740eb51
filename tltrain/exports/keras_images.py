"""The networks of images as Keras has them in `keras.applications`, resize and scaling of pixels in front."""

import functools
import inspect
import operator
from typing import Any

import numpy as np

from tltrain.experiment.finished import Finished
from tltrain.exports.filling import Arrays, layers_of, misfit
from tltrain.models.efficientnet import normalization_scale
from tltrain.models.image_backbone import scaled
from tltrain.weights import keras_layout

_OTHER_NAMES = {"mobilenetv1": "mobilenet"}  # in keras.applications, of what the zoo names otherwise


def body(keras: Any, run: Finished, images: Any) -> tuple[Any, Arrays]:
    """Features `[B, C]` of the Keras tensor `images`, uint8 `[B, H, W, 3]`, and the arrays of their layers.

    Layers carry the names of `keras.applications` and hold the BatchNorm momentum of the run.

    Raises:
        WeightsError: the network of `keras.applications` is another than the backbone.
    """
    application, arguments = _application(keras, run)
    pixels = run.kind.rows_of(keras.ops, keras.ops.cast(images, "float32"))
    made = application(
        weights=None,
        include_top=False,
        pooling="avg",
        input_tensor=scaled(pixels, run.model.backbone.pixels),
        **arguments,
    )
    return made.output, _arrays(run, made)


def _application(keras, run):
    """The function of `keras.applications` that makes the network of `run`, and its arguments but size and weights."""
    backbone = run.model.backbone
    arguments, name = {}, run.config.model.backbone
    if hasattr(backbone, "alpha"):
        arguments["alpha"], name = backbone.alpha, name.removesuffix(f"_{backbone.alpha}")
    applications = keras.applications
    found = {known.lower(): known for known in dir(applications) if callable(getattr(applications, known))}
    name = name.replace("_", "")
    if (name := _OTHER_NAMES.get(name, name)) not in found:
        raise misfit(run, "its name")
    application = getattr(applications, found[name])
    if "include_preprocessing" in inspect.signature(application).parameters:  # `body` scales what it is given
        arguments["include_preprocessing"] = False
    return application, arguments


def _arrays(run, made):
    """Those of the layers of the Keras model `made`, whose BatchNorm momentum is set.

    Layers of a class have one order in both; names will not do, since Keras only numbers some of them.
    """
    backbone = run.model.backbone
    variables = {name: tree["backbone"] for name, tree in run.variables.items()}
    ours = backbone.keras_layers()
    leaves = keras_layout.leaves(ours, variables)
    theirs = layers_of(made)
    arrays: Arrays = {}
    for class_name in {layer.class_name for layer in ours} | {type(layer).__name__ for layer in theirs}:
        layers = [layer for layer in ours if layer.class_name == class_name]
        filled = [layer for layer in theirs if type(layer).__name__ == class_name]
        if len(layers) != len(filled):
            raise misfit(run, f"{len(filled)} layers {class_name}, here {len(layers)}")
        for layer, keras_layer in zip(layers, filled, strict=True):
            of_layer = [leaf for leaf in leaves if leaf.layer == layer]
            arrays[keras_layer.name] = {leaf.keys[-2]: _array(leaf, variables) for leaf in of_layer}
            if class_name == "BatchNormalization" and backbone.batch_norm_momentum is not None:
                keras_layer.momentum = backbone.batch_norm_momentum
    return arrays


def _array(leaf, variables):
    """As the layer of Keras has it."""
    array = np.asarray(functools.reduce(operator.getitem, leaf.path, variables))
    if leaf.layer.class_name == "Normalization" and leaf.keys[-2] == "variance":
        array = 1 / np.square(normalization_scale(array))
    return array.transpose(leaf.transpose) if leaf.transpose else array
