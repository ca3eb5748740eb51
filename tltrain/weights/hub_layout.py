"""What files call the arrays of a backbone that comes from the Hub: on the Hub itself, and in KerasHub."""

import re
from typing import NamedTuple

from tltrain.models.backbone import Backbone

# leaf: names of the array on the Hub, the old one of TensorFlow last, and its index in a layer of KerasHub
_ARRAYS = {
    "kernel": (("weight",), 0),
    "embedding": (("weight",), 0),
    "scale": (("weight", "gamma"), 0),
    "bias": (("bias", "beta"), 1),
}
# as in https://github.com/keras-team/keras-hub/blob/master/keras_hub/src/models/bert/bert_backbone.py, whose layers
# Keras stores by class and number
_KERAS_HUB = {
    "embeddings.word_embeddings": "reversible_embedding",
    "embeddings.position_embeddings": "position_embedding",
    "embeddings.token_type_embeddings": "embedding",
    "embeddings.LayerNorm": "layer_normalization",
    "pooler.dense": "dense",
}
_KERAS_HUB_ENCODER = {
    "attention.self.query": "_self_attention_layer/query_dense",
    "attention.self.key": "_self_attention_layer/key_dense",
    "attention.self.value": "_self_attention_layer/value_dense",
    "attention.output.dense": "_self_attention_layer/output_dense",
    "attention.output.LayerNorm": "_self_attention_layer_norm",
    "intermediate.dense": "_feedforward_intermediate_dense",
    "output.dense": "_feedforward_output_dense",
    "output.LayerNorm": "_feedforward_layer_norm",
}


class Leaf(NamedTuple):
    """One array of the backbone: its place in our tree, the layer's name on the Hub, its shape with us."""

    path: tuple[str, ...]
    layer: str
    shape: tuple[int, ...]

    @property
    def label(self) -> str:
        """How messages name it."""
        return self.names[0]

    @property
    def names(self) -> list[str]:
        """What files of the Hub may call it, without a prefix."""
        return [f"{self.layer}.{key}" for key in _ARRAYS[self.path[-1]][0]]

    @property
    def is_transposed(self) -> bool:
        """Whether files of the Hub have it transposed: PyTorch's kernels are `[outputs, inputs]`."""
        return self.path[-1] == "kernel"

    @property
    def keras_name(self) -> str | None:
        """The array in a file of KerasHub, below the backbone's group; None where it has none."""
        group = _KERAS_HUB.get(self.layer)
        if found := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", self.layer):
            encoder = "transformer_encoder" + (f"_{found[1]}" if found[1] != "0" else "")
            group = f"{encoder}/{_KERAS_HUB_ENCODER[found[2]]}" if found[2] in _KERAS_HUB_ENCODER else None
        return group and f"layers/{group}/vars/{_ARRAYS[self.path[-1]][1]}"


def leaves(backbone: Backbone, shapes: dict) -> list[Leaf]:
    """The arrays to fill; `shapes` as for `weights.load`. Empty for a backbone whose weights are Keras'."""
    return [
        Leaf(("params", stage, layer, leaf), name, tuple(array.shape))
        for stage, layers in shapes["params"].items()
        for layer, arrays in layers.items()
        for leaf, array in arrays.items()
        if (name := backbone.hub_name(stage, layer)) is not None
    ]
