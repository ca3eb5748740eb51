"""BERT and DistilBERT of layers that Keras brings, called as in the files of the Hugging Face Hub."""

from typing import Any

from tltrain.experiment.finished import Finished
from tltrain.exports.filling import Arrays
from tltrain.exports.keras_transformer import ACTIVATIONS, arrays_of, attend, name_of
from tltrain.models.bert import NAMES

_UNSEEN = -1e9  # what is added to scores of padding; finite, so that rows of padding alone are numbers too


def body(keras: Any, run: Finished, ids: Any, mask: Any, types: Any) -> tuple[Any, Arrays]:
    """Pooled features `[B, H]` of the Keras tensors `ids`, `mask` and `types`, int32 `[B, L]`, and their arrays.

    `mask` is 1 where a token is and 0 behind the last of a row: there no position is needed.
    """
    backbone, ops = run.model.backbone, keras.ops
    positions = (ops.cumsum(ops.ones_like(ids), axis=1) - 1) * mask
    there = ops.cast(mask, "float32")
    unseen = (1.0 - keras.layers.Reshape((1, 1, -1))(there)) * _UNSEEN
    hidden = _embedded(keras, backbone, ids, positions, types)
    for i in range(backbone.num_layers):
        hidden = _layer(keras, backbone, f"layer_{i}", hidden, unseen)
    return _pooled(keras, backbone, hidden, there), arrays_of(run)


def _embedded(keras, backbone, ids, positions, types):
    def embedded(x, size, name):
        return keras.layers.Embedding(size, backbone.hidden_size, name=name_of(backbone, "embeddings", name))(x)

    hidden = embedded(ids, backbone.vocab_size, "word_embeddings")
    hidden += embedded(positions, backbone.num_positions, "position_embeddings")
    if backbone.num_types:
        hidden += embedded(types, backbone.num_types, "token_type_embeddings")
    return _normalized(keras, backbone, "embeddings", "LayerNorm", hidden)


def _layer(keras, backbone, stage, hidden, unseen):
    """`hidden` `[B, L, H]` to the same shape; `unseen` `[B, 1, 1, L]` is added to the scores of keys."""
    names = {name: both[backbone.distilled] for name, both in NAMES.items()}

    def dense(x, units, name):
        return keras.layers.Dense(units, name=name_of(backbone, stage, names[name]))(x)

    query, key, value = (dense(hidden, backbone.hidden_size, name) for name in ("query", "key", "value"))
    seen = attend(keras, query, key, value, backbone.num_heads, unseen)
    attended = dense(seen, backbone.hidden_size, "attended")
    hidden = _normalized(keras, backbone, stage, names["attention_norm"], hidden + attended)
    wide = ACTIVATIONS[backbone.activation](keras.ops, dense(hidden, backbone.intermediate_size, "up"))
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
        first = ops.tanh(keras.layers.Dense(backbone.hidden_size, name=name_of(backbone, "pooler", "dense"))(first))
    return first


def _normalized(keras, backbone, stage, name, x):
    return keras.layers.LayerNormalization(epsilon=backbone.epsilon, name=name_of(backbone, stage, name))(x)
