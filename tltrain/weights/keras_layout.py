"""Which array of a Keras file belongs to which leaf of a backbone: by the names of layers, or by their order.

Keras gives some layers no name of their own but numbers them through a session (`conv2d_57`), and its older
`.weights.h5` files hold no names at all. Such layers are told apart by their order within their class, which is that
of `model.layers` in the file as in the backbone; they have to fit by shape, all of them, in one way alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tltrain.models.backbone import KerasLayer

_SCALE_AND_BIAS = ((("gamma",), ("params", "scale")), (("beta",), ("params", "bias")))
_NORM = (
    *_SCALE_AND_BIAS,
    (("moving_mean",), ("batch_stats", "mean")),
    (("moving_variance",), ("batch_stats", "var")),
)
_KERNEL_AND_BIAS = ((("kernel",), ("params", "kernel")), (("bias",), ("params", "bias")))
_CHANNELS_LAST = (0, 1, 3, 2)  # from a depthwise kernel [kh, kw, 1, C] to Keras' [kh, kw, C, 1]
# class: its name in snake case, and of each array the names in files, the leaf, and how the leaf is transposed
_CLASSES: dict[str, tuple[str, tuple[tuple, ...]]] = {
    "Conv2D": ("conv2d", _KERNEL_AND_BIAS),
    "Dense": ("dense", _KERNEL_AND_BIAS),
    "DepthwiseConv2D": (
        "depthwise_conv2d",
        ((("depthwise_kernel", "kernel"), ("params", "kernel"), _CHANNELS_LAST),),
    ),
    "SeparableConv2D": (
        "separable_conv2d",
        (
            (("depthwise_kernel",), ("params", "depthwise_kernel"), _CHANNELS_LAST),
            (("pointwise_kernel",), ("params", "pointwise_kernel")),
        ),
    ),
    "BatchNormalization": ("batch_normalization", _NORM),
    "LayerNormalization": ("layer_normalization", _SCALE_AND_BIAS),
    # whose array has no name of its own: Keras 3 numbers it through a session, as it does layers
    "LayerScale": ("layer_scale", ((("gamma", "Variable", "variable"), ("params", "gamma")),)),
    "Normalization": (
        "normalization",
        ((("mean",), ("batch_stats", "mean")), (("variance",), ("batch_stats", "var"))),
    ),
}
# what NumPy calls the dtype of a dataset, and Keras that of a variable
DTYPES = {"float32": "float32", "float16": "float16", "float64": "float64", "void16": "bfloat16"}
_SEQUENTIAL = re.compile(r"(/sequential(_\d+)?/layers)+$")  # where a model within another keeps its layers
_UNUSED = {"Normalization": ("count", "2")}  # arrays of a layer that no leaf needs


class Leaf(NamedTuple):
    """One array of the backbone: its place in our tree, its shape in Keras, and what files call it."""

    path: tuple[str, ...]
    layer: KerasLayer
    keras_shape: tuple[int, ...]
    keys: tuple[str, ...]  # names of the array, and last its index in the layer
    transpose: tuple[int, ...] | None

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.layer.name or '/'.join(self.layer.path)}/{self.keys[0]}"


@dataclass
class FileLayer:
    """A layer as a file has it: its group, its name and its class in snake case where the file tells, its arrays."""

    group: str
    name: str | None
    kind: str | None
    arrays: dict[str, Any] = field(default_factory=dict)

    @property
    def numbered(self) -> bool:
        """Whether it has no name of its own."""
        return self.kind is not None and (self.name is None or _kind(self.name) == self.kind)

    def named(self, leaf: "Leaf") -> list[str]:
        """Its arrays that are called as `leaf` is, whatever suffix follows: `kernel`, `kernel:0`, `variable_3`."""
        return [name for name in self.arrays if re.sub(r"_\d+$", "", name.partition(":")[0]) in leaf.keys]


class Match(NamedTuple):
    """What is wrong, the dataset of each leaf, and the groups of layers that the backbone does not have."""

    faults: list[str]
    chosen: dict[Leaf, Any]
    ignored: list[str]


def leaves(layers: Sequence[KerasLayer], shapes: dict) -> list[Leaf]:
    """The arrays to fill, layer by layer as Keras stores them; `shapes` as for `weights.load`."""
    found = []
    for layer in layers:
        index = 0
        for names, (collection, leaf), *transpose in _CLASSES[layer.class_name][1]:
            arrays = shapes[collection].get(layer.path[0], {}).get(layer.path[1], {})
            if leaf in arrays:
                shape, axes = tuple(arrays[leaf].shape), transpose[0] if transpose else None
                keras_shape = tuple(shape[i] for i in axes) if axes else shape
                path = (collection, *layer.path, leaf)
                found.append(Leaf(path, layer, keras_shape, (*names, str(index)), axes))
                index += 1
    return found


def named_layers(found: Mapping[str, Any], layers: Sequence[KerasLayer]) -> list[FileLayer]:
    """The layers of the official layout or a whole model, whose datasets end in `layer/weight`, with or without `:0`.

    Their order is that of `found`; what is called by the old name of one of `layers` gets that of today.
    """
    today = {f"/{layer.old_name}": layer.name for layer in layers if layer.old_name}
    file_layers: dict[str, FileLayer] = {}
    for name, dataset in found.items():
        group, _, weight = f"/{name}".rpartition("/")
        old = max(filter(group.endswith, today), key=len, default="")  # `Conv` also ends `squeeze_excite/Conv`
        layer = today.get(old, group.rpartition("/")[2])
        file_layer = file_layers.setdefault(group, FileLayer(group.strip("/"), layer, _kind(layer)))
        file_layer.arrays[weight] = dataset
    return list(file_layers.values())


def stored_layers(found: Mapping[str, Any]) -> Iterator[list[FileLayer]]:
    """The layers of each model in a Keras 3 `.weights.h5`, numbered by class: `layers/conv2d_3/vars/0`.

    A model that has `Sequential` ones among its layers comes once more, with their layers.
    """
    models: dict[str, dict[str, FileLayer]] = {}
    whole: dict[str, dict[str, FileLayer]] = {}
    for name, dataset in found.items():
        group, has_arrays, index = name.partition("/vars/")
        if has_arrays:
            model, _, key = group.rpartition("/")
            kind = re.sub(r"_\d+$", "", key)
            written = dataset.parent.attrs.get("name")  # today's Keras writes it, older ones did not
            layer = FileLayer(group, None if written is None else str(written), kind)
            layer = models.setdefault(model, {}).setdefault(group, layer)
            layer.arrays[index] = dataset
            whole.setdefault(_SEQUENTIAL.sub("", model), {})[group] = layer
    whole = {name: layers for name, layers in whole.items() if layers.keys() != models.get(name, {}).keys()}
    for layers in (*models.values(), *whole.values()):
        yield sorted(layers.values(), key=lambda layer: (layer.kind, _number(layer.group)))


def match(layers: Sequence[KerasLayer], wanted: list[Leaf], file_layers: list[FileLayer]) -> Match:
    """Finds the dataset of each of the `wanted` leaves of `layers`."""
    faults, places = _place(layers, wanted, file_layers)
    chosen: dict[Leaf, Any] = {}
    used = set()
    for leaf in wanted:
        places_of_layer = places.get(leaf.layer.path, [])
        found = [(place, key) for place in places_of_layer for key in place.named(leaf)]
        used |= {(place.group, key) for place, key in found}
        if len(found) == 1:
            place, key = found[0]
            chosen[leaf] = place.arrays[key]
            faults += misfits(chosen[leaf], leaf)
        elif found:
            names = ", ".join(place.arrays[key].name.lstrip("/") for place, key in found)
            faults.append(f"ambiguous {leaf.label} ({names})")
        elif not any(fault.startswith("ambiguous") for fault in faults) or leaf.layer.name:
            faults.append(f"missing {leaf.label}")
    taken = {place.group for places_of_layer in places.values() for place in places_of_layer}
    for layer in layers:
        for place in places.get(layer.path, []):
            free = [key for key in place.arrays if (place.group, key) not in used]
            faults += [
                f"unexpected {place.arrays[key].name.lstrip('/')}"
                for key in free
                if key.partition(":")[0] not in _UNUSED.get(layer.class_name, ())
            ]
    return Match(faults, chosen, [layer.group for layer in file_layers if layer.group not in taken])


def _place(layers, wanted, file_layers):
    """Faults, and the layers of the file that each layer of the backbone may be, by its path."""
    has_names = any(layer.name for layer in file_layers)
    places: dict[tuple[str, str], list[FileLayer]] = {}
    unnamed: dict[str, list[KerasLayer]] = {}
    for layer in layers:
        if layer.name is None or not has_names:
            unnamed.setdefault(layer.class_name, []).append(layer)
        else:
            places[layer.path] = [found for found in file_layers if found.name == layer.name]
    faults = []
    for class_name, of_class in unnamed.items():
        kind = _CLASSES[class_name][0]
        candidates = [layer for layer in file_layers if layer.kind == kind and layer.numbered]
        ways = _ways(of_class, wanted, candidates)
        if len(ways) > 1:
            faults.append(
                f"ambiguous {class_name} ({len(of_class)} of {len(candidates)} layers without a name of their own, "
                f"which fit in {len(ways)} ways; save the backbone alone)"
            )
            continue
        first = ways[0] if ways else 0
        places |= {layer.path: [found] for layer, found in zip(of_class, candidates[first:], strict=False)}
    return faults, places


def _ways(layers, wanted, candidates):
    """The indices from which on all `layers` fit the `candidates` in order."""
    leaves_of = [[leaf for leaf in wanted if leaf.layer == layer] for layer in layers]

    def fits(leaves_of_layer, candidate):
        return all(
            any(candidate.arrays[name].shape == leaf.keras_shape for name in candidate.named(leaf))
            for leaf in leaves_of_layer
        )

    starts = range(len(candidates) - len(layers) + 1)
    return [i for i in starts if all(map(fits, leaves_of, candidates[i:]))]


def _kind(name):
    """The class in snake case whose layers Keras numbers so, or None."""
    kind = re.sub(r"_\d+$", "", name)
    return kind if kind in {snake for snake, _ in _CLASSES.values()} else None


def _number(group):
    number = re.search(r"_(\d+)$", group)
    return int(number[1]) if number else 0


def misfits(dataset: Any, leaf: Leaf) -> list[str]:
    """In what the shape or the dtype of a dataset is not one that `leaf` can be read from."""
    if dataset.shape != leaf.keras_shape:
        return [f"misshapen {leaf.label}: {dataset.shape}, expected {leaf.keras_shape}"]
    if dataset.dtype.name not in DTYPES:
        return [f"misshapen {leaf.label}: dtype {dataset.dtype}, expected {' or '.join(DTYPES.values())}"]
    return []
