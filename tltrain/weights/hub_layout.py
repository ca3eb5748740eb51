"""What files call the arrays of a backbone that comes from the Hub: on the Hub itself, and in KerasHub."""

import functools
import re
from typing import NamedTuple

from tltrain.models.backbone import Backbone, Layout

# leaf: what its arrays are called on the Hub after their layer, the old name of TensorFlow or of timm last
_ARRAYS = {
    "kernel": (".weight",),
    "embedding": (".weight",),
    "scale": (".weight", ".gamma"),
    "bias": (".bias", ".beta"),
    "gamma": (".lambda1", ".gamma", ""),
    "value": ("", ".weight"),
    "mean": (".running_mean",),
    "var": (".running_var",),
}
_INDEX = {"kernel": 0, "embedding": 0, "scale": 0, "bias": 1}  # of an array in a layer of KerasHub
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


class Place(NamedTuple):
    """An array in a file: its name, and which third of it along the first axis is wanted; None: it is whole."""

    name: str
    third: int | None


class Leaf(NamedTuple):
    """One array of the backbone: its place in our tree, the layer's name on the Hub, its shape with us."""

    path: tuple[str, ...]
    layer: str
    shape: tuple[int, ...]

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.layer}{_ARRAYS[self.path[-1]][0]}"

    def places(self, layout: Layout) -> list[Place]:
        """Where files of a `layout` may have it, without a prefix."""
        return [_place(f"{self.layer}{ending}", layout) for ending in _ARRAYS[self.path[-1]]]

    @property
    def hub_shape(self) -> tuple[int, ...]:
        """Its shape in files of the Hub: PyTorch's kernels are `[outputs, inputs, ...]`."""
        return self.shape if self.path[-1] != "kernel" else (*self.shape[:-3:-1], *self.shape[:-2])

    @property
    def axes(self) -> tuple[int, ...]:
        """Which axes of the array in a file of the Hub are ours, in our order."""
        dims = len(self.shape)
        return tuple(range(dims)) if self.path[-1] != "kernel" else (*range(2, dims), 1, 0)

    @property
    def keras_name(self) -> str | None:
        """The array in a file of KerasHub, below the backbone's group; None where it has none."""
        group = _KERAS_HUB.get(self.layer)
        if found := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", self.layer):
            encoder = "transformer_encoder" + (f"_{found[1]}" if found[1] != "0" else "")
            group = f"{encoder}/{_KERAS_HUB_ENCODER[found[2]]}" if found[2] in _KERAS_HUB_ENCODER else None
        return group and f"layers/{group}/vars/{_INDEX[self.path[-1]]}"


@functools.cache
def _place(name: str, layout: Layout) -> Place:
    for pattern, replacement in layout:
        name = re.sub(pattern, replacement, name)
    third = re.search(r"\[(\d)\]", name)
    return Place(name.replace(third[0], ""), int(third[1])) if third else Place(name, None)


def leaves(backbone: Backbone, shapes: dict) -> list[Leaf]:
    """The arrays to fill; `shapes` as for `weights.load`. Empty for a backbone whose weights are Keras' alone."""
    return [
        Leaf((collection, stage, layer, leaf), name, tuple(array.shape))
        for collection, stages in shapes.items()
        for stage, layers in stages.items()
        for layer, arrays in layers.items()
        for leaf, array in arrays.items()
        if (name := backbone.hub_name(stage, layer)) is not None
    ]
