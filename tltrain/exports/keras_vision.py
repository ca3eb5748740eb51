"""Transformers of images of layers that Keras brings, called as in the files of the Hugging Face Hub.

Keras has no layer for an array that is learned as it is: tokens, positions and factors of a LayerScale are the rows of
an `Embedding`, looked up one after the other.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from tltrain.experiment.finished import Finished
from tltrain.exports.filling import Arrays
from tltrain.exports.keras_transformer import ACTIVATIONS, arrays_of, attend, name_of
from tltrain.models.image_backbone import scaled
from tltrain.models.positions import resized


def body(keras: Any, run: Finished, images: Any) -> tuple[Any, Arrays]:
    """Features `[B, C]` of the Keras tensor `images`, uint8 `[B, H, W, 3]`, and the arrays of their layers.

    Resize and scaling of pixels are in front, positions those for the run's `data.image_size`.
    """
    backbone = run.model.backbone
    pixels = scaled(run.kind.rows_of(keras.ops, keras.ops.cast(images, "float32")), backbone.pixels)
    hidden = _embedded(keras, backbone, pixels)
    for i in range(backbone.num_layers):
        first_only = backbone.pooling == "cls" and i == backbone.num_layers - 1
        hidden = _layer(keras, backbone, f"layer_{i}", hidden, first_only)
    hidden = _normalized(keras, backbone, backbone.last_norm, backbone.last_norm, hidden)
    arrays = arrays_of(run)
    places = arrays[name_of(backbone, "embeddings", backbone.names.positions)]
    places["embeddings"] = _resized(backbone, places["embeddings"], run.config.data.image_size)
    return _pooled(keras, backbone, hidden), arrays


def _embedded(keras, backbone, pixels):
    """`pixels` `[B, H, W, 3]` as tokens `[B, T, C]`."""
    names, features, side = backbone.names, backbone.hidden_size, backbone.patch_size
    name = name_of(backbone, "embeddings", names.patches)
    maps = keras.layers.Conv2D(features, side, side, use_bias=backbone.patch_bias, name=name)(pixels)
    patches = keras.layers.Reshape((-1, features))(maps)
    learned = functools.partial(_learned, keras, backbone, "embeddings", patches)
    before, num_placed = [learned(token, 1) for token in backbone.tokens], _num_placed(backbone)
    places = learned(names.positions, num_placed + patches.shape[1])
    if num_placed:
        before = [token + places[:, i : i + 1] for i, token in enumerate(before)]
    if backbone.registers:
        before.append(learned("register_tokens", backbone.registers))
    patches += places[:, num_placed:]
    hidden = keras.ops.concatenate([*before, patches], 1) if before else patches
    first = backbone.norm_of_embeddings
    return _normalized(keras, backbone, "embeddings", first, hidden) if first else hidden


def _learned(keras, backbone, stage, like, name, count):
    """`count` rows that are learned as they are, `[B, count, C]`, of as many examples as `like` `[B, T, C]` has."""
    ops = keras.ops
    rows = ops.cast(ops.zeros_like(like[:, :1, 0]), "int32") + np.arange(count, dtype=np.int32)
    return keras.layers.Embedding(count, backbone.hidden_size, name=name_of(backbone, stage, name))(rows)


def _layer(keras, backbone, stage, hidden, first_only):
    """`hidden` `[B, T, C]` to the same shape, or with `first_only` to `[B, 1, C]`."""
    names, ops = backbone.names, keras.ops
    dense = functools.partial(_dense, keras, backbone, stage)

    def scale(x, name):
        return x * _learned(keras, backbone, stage, x, name, 1) if backbone.scaled else x

    normed = _normalized(keras, backbone, stage, names.norm_before, hidden)
    query = dense(normed[:, :1] if first_only else normed, names.query)
    key, value = (dense(normed, name) for name in (names.key, names.value))
    attended = dense(attend(keras, query, key, value, backbone.num_heads), names.attended)
    hidden = (hidden[:, :1] if first_only else hidden) + scale(attended, "layer_scale1")
    wide = _normalized(keras, backbone, stage, names.norm_after, hidden)
    wide = dense(wide, names.up, backbone.intermediate_size * (2 if backbone.gated else 1))
    if backbone.gated:
        gate, wide = ops.split(wide, 2, axis=-1)
        wide = ops.silu(gate) * wide
    else:
        wide = ACTIVATIONS[backbone.activation](ops, wide)
    return hidden + scale(dense(wide, names.down), "layer_scale2")


def _pooled(keras, backbone, hidden):
    """`[B, C]`."""
    if backbone.pooling == "mean":
        return keras.ops.mean(hidden[:, backbone.num_before :], 1)
    return (_attended(keras, backbone, hidden) if backbone.pooling == "map" else hidden)[:, 0]


def _attended(keras, backbone, hidden):
    """The learned token `[B, 1, C]` that attends to all others."""
    dense = functools.partial(_dense, keras, backbone, "head")
    probe = _learned(keras, backbone, "head", hidden, "probe", 1)
    query, key, value = (
        dense(x, f"attention.{name}") for x, name in ((probe, "query"), (hidden, "key"), (hidden, "value"))
    )
    x = dense(attend(keras, query, key, value, backbone.num_heads), "attention.out_proj")
    wide = dense(_normalized(keras, backbone, "head", "layernorm", x), "mlp.fc1", backbone.intermediate_size)
    return x + dense(ACTIVATIONS[backbone.activation](keras.ops, wide), "mlp.fc2")


def _dense(keras, backbone, stage, x, name, units=None):
    return keras.layers.Dense(units or backbone.hidden_size, name=name_of(backbone, stage, name))(x)


def _normalized(keras, backbone, stage, name, x):
    return keras.layers.LayerNormalization(epsilon=backbone.epsilon, name=name_of(backbone, stage, name))(x)


def _num_placed(backbone):
    """Tokens that have a position, before those of patches."""
    return len(backbone.tokens) if backbone.placed_tokens else 0


def _resized(backbone, places, size):
    """The rows of positions `places` for images of `size`."""
    before, count = (backbone.grid, backbone.grid), _num_placed(backbone)
    after = tuple(side // backbone.patch_size for side in size)
    patches = resized(jnp.asarray(places[None, count:]), before, after, backbone.antialias)
    return np.concatenate([places[:count], np.asarray(patches)[0]])
