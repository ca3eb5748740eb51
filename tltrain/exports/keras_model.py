"""A finished run as a model of plain Keras layers: a body by whoever knows the network, the rest around it."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from tltrain.data.tensorflow import import_tensorflow
from tltrain.experiment.finished import Finished
from tltrain.exports import filling, keras_bert, keras_images, keras_vision
from tltrain.models.backbone import Backbone
from tltrain.models.bert import Bert
from tltrain.models.image_backbone import ImageBackbone
from tltrain.models.vision_transformer import VisionTransformer

# from Keras, the run and a Keras tensor for each argument of `Kind.signature` to features `[B, C]` and their arrays
Body = Callable[..., tuple[Any, filling.Arrays]]
BODIES: dict[type[Backbone], Body] = {  # the first that fits
    VisionTransformer: keras_vision.body,
    ImageBackbone: keras_images.body,
    Bert: keras_bert.body,
}


def import_keras() -> Any:
    """Keras, on TensorFlow unless `$KERAS_BACKEND` names another backend; new layers are float32, as weights are."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import_tensorflow()
    import keras

    keras.config.set_dtype_policy("float32")  # a user's keras.json may have another
    return keras


def body_of(backbone: Backbone) -> Body | None:
    """What makes its features in Keras; None where nothing does."""
    return next((body for kind, body in BODIES.items() if isinstance(backbone, kind)), None)


def build(run: Finished) -> Any:
    """A functional `keras.Model` from the arguments of `run.kind.signature()` to `Task.activation`, float32 `[B, K]`.

    It is called with a dict of them by name, or with the one it has. All layers are trainable; the head is
    `predictions`, the names of others are said where bodies are made.

    Raises:
        WeightsError: its network has other weights than the backbone.
    """
    keras, model = import_keras(), run.model
    body = body_of(model.backbone)
    assert body is not None, "proven.export lets nothing else pass"
    inputs = [keras.Input(sizes(axes)[1:], dtype=dtype, name=name) for name, dtype, axes in run.kind.signature()]
    features, arrays = body(keras, run, *inputs)
    head = keras.layers.Dense(model.num_outputs, name="predictions")
    logits = head(keras.layers.Dropout(model.dropout, name="dropout")(features))
    outputs = run.task.activation(keras.ops, logits)
    built = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs, name=run.config.model.backbone)
    leaves = {name: np.asarray(leaf) for name, leaf in run.variables["params"]["head"].items()}
    filling.fill(run, built, arrays | {head.name: leaves})
    return built


def sizes(axes: tuple[str | int, ...]) -> tuple[int | None, ...]:
    """The `axes` of an argument as TensorFlow and Keras have them: None where one is open."""
    return tuple(None if isinstance(axis, str) else axis for axis in axes)
