"""What networks of tokens have in common as layers of Keras: activations, attention, and where their arrays go."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tltrain.experiment.finished import Finished
from tltrain.exports.filling import Arrays

# those of `models.transformer`; Keras writes the exact gelu with erfc, which ONNX does not have
ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "gelu": lambda ops, x: x * 0.5 * (1.0 + ops.erf(x * 0.5**0.5)),
    "gelu_new": lambda ops, x: ops.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda ops, x: ops.gelu(x, approximate=True),
    "quick_gelu": lambda ops, x: x * ops.sigmoid(1.702 * x),
    "relu": lambda ops, x: ops.relu(x),
}
# leaf: what its array is called in Keras
_ARRAYS = {"embedding": "embeddings", "kernel": "kernel", "scale": "gamma", "bias": "bias"}
_LEARNED = ("value", "gamma")  # arrays that are learned as they are: rows of an `Embedding`


def attend(keras: Any, query: Any, key: Any, value: Any, num_heads: int, unseen: Any = None) -> Any:
    """Attention of `query` `[B, L, H]` over `key` and `value` `[B, T, H]`, in `num_heads` heads: `[B, L, H]`.

    `unseen` `[B, 1, 1, T]` is added to the scores of keys.
    """
    ops, features = keras.ops, query.shape[-1]
    size = features // num_heads

    def heads(x):
        return ops.transpose(keras.layers.Reshape((-1, num_heads, size))(x), (0, 2, 1, 3))

    scores = ops.matmul(heads(query * size**-0.5), ops.transpose(heads(key), (0, 1, 3, 2)))
    scores = scores if unseen is None else scores + unseen
    seen = ops.matmul(ops.softmax(scores), heads(value))
    return keras.layers.Reshape((-1, features))(ops.transpose(seen, (0, 2, 1, 3)))


def name_of(backbone: Any, stage: str, layer: str) -> str:
    """What files of the Hub call a layer, `_` in place of `.`, which Keras on PyTorch cannot have in a name."""
    return backbone.hub_name(stage, layer).replace(".", "_")


def arrays_of(run: Finished) -> Arrays:
    """Those of the backbone, by what Keras calls them."""
    return {
        name_of(run.model.backbone, stage, layer): dict(
            _array(leaf, np.asarray(array), leaves) for leaf, array in leaves.items()
        )
        for stage, layers in run.variables["params"]["backbone"].items()
        for layer, leaves in layers.items()
    }


def _array(leaf, array, leaves):
    if leaf in _LEARNED:
        return "embeddings", array.reshape(-1, array.shape[-1])
    return "beta" if leaf == "bias" and "scale" in leaves else _ARRAYS[leaf], array
