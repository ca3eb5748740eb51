"""BERT and DistilBERT of layers that Keras brings, called as in the files of the Hugging Face Hub."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tltrain.experiment.finished import Finished
from tltrain.exports.filling import Arrays
from tltrain.models.bert import NAMES, Bert

_UNSEEN = -1e9  # what is added to scores of padding; finite, so that rows of padding alone are numbers too
# Keras writes the exact one with erfc, which ONNX does not have
ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "gelu": lambda ops, x: x * 0.5 * (1.0 + ops.erf(x * 0.5**0.5)),
    "gelu_new": lambda ops, x: ops.gelu(x, approximate=True),
    "relu": lambda ops, x: ops.relu(x),
}


def body(keras: Any, run: Finished, ids: Any, mask: Any, types: Any) -> tuple[Any, Arrays]:
    """Pooled features `[B, H]` of the Keras tensors `ids`, `mask` and `types`, int32 `[B, L]`, and their arrays.

    `mask` is 1 where a token is and 0 behind the last of a row: there no position is needed. Layers are called as in
    files of the Hub but for `_` in place of `.`, which Keras on PyTorch cannot have in a name.
    """
    backbone, ops = run.model.backbone, keras.ops
    positions = (ops.cumsum(ops.ones_like(ids), axis=1) - 1) * mask
    there = ops.cast(mask, "float32")
    unseen = (1.0 - keras.layers.Reshape((1, 1, -1))(there)) * _UNSEEN
    hidden = _embedded(keras, backbone, ids, positions, types)
    for i in range(backbone.num_layers):
        hidden = _layer(keras, backbone, f"layer_{i}", hidden, unseen)
    return _pooled(keras, backbone, hidden, there), _arrays(backbone, run.variables["params"]["backbone"])


def _embedded(keras, backbone, ids, positions, types):
    def embedded(x, size, name):
        return keras.layers.Embedding(size, backbone.hidden_size, name=_name(backbone, "embeddings", name))(x)

    hidden = embedded(ids, backbone.vocab_size, "word_embeddings")
    hidden += embedded(positions, backbone.num_positions, "position_embeddings")
    if backbone.num_types:
        hidden += embedded(types, backbone.num_types, "token_type_embeddings")
    return _normalized(keras, backbone, "embeddings", "LayerNorm", hidden)


def _layer(keras, backbone, stage, hidden, unseen):
    """`hidden` `[B, L, H]` to the same shape; `unseen` `[B, 1, 1, L]` is added to the scores of keys."""
    ops, size = keras.ops, backbone.hidden_size // backbone.num_heads
    names = {name: both[backbone.distilled] for name, both in NAMES.items()}

    def dense(x, units, name):
        return keras.layers.Dense(units, name=_name(backbone, stage, names[name]))(x)

    def heads(name):
        apart = keras.layers.Reshape((-1, backbone.num_heads, size))(dense(hidden, backbone.hidden_size, name))
        return ops.transpose(apart, (0, 2, 1, 3))

    scores = ops.matmul(heads("query") * size**-0.5, ops.transpose(heads("key"), (0, 1, 3, 2)))
    seen = ops.transpose(ops.matmul(ops.softmax(scores + unseen), heads("value")), (0, 2, 1, 3))
    attended = dense(keras.layers.Reshape((-1, backbone.hidden_size))(seen), backbone.hidden_size, "attended")
    hidden = _normalized(keras, backbone, stage, names["attention_norm"], hidden + attended)
    wide = ACTIVATIONS[backbone.activation](ops, dense(hidden, backbone.intermediate_size, "up"))
    down = dense(wide, backbone.hidden_size, "down")
    return _normalized(keras, backbone, stage, names["norm"], hidden + down)


def _pooled(keras, backbone, hidden, there):
    """`[B, H]`; of a row without tokens zeros before the pooler, as in the run."""
    ops = keras.ops
    if backbone.pooling == "mean":
        weights = keras.layers.Reshape((-1, 1))(there)
        return ops.sum(hidden * weights, 1) / ops.maximum(ops.sum(weights, 1), 1.0)
    first = hidden[:, 0] * there[:, :1]
    if backbone.pooling == "pooler":
        first = ops.tanh(keras.layers.Dense(backbone.hidden_size, name=_name(backbone, "pooler", "dense"))(first))
    return first


def _normalized(keras, backbone, stage, name, x):
    return keras.layers.LayerNormalization(epsilon=backbone.epsilon, name=_name(backbone, stage, name))(x)


def _name(backbone: Bert, stage: str, layer: str) -> str:
    return backbone.hub_name(stage, layer).replace(".", "_")


def _arrays(backbone, params):
    """Each under the name that it has in Keras."""
    names = {"embedding": "embeddings", "kernel": "kernel", "scale": "gamma", "bias": "bias"}
    return {
        _name(backbone, stage, layer): {
            "beta" if leaf == "bias" and "scale" in leaves else names[leaf]: np.asarray(array)
            for leaf, array in leaves.items()
        }
        for stage, layers in params.items()
        for layer, leaves in layers.items()
    }
