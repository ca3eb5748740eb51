"""A `model.weights.h5` of KerasHub, or a `.keras` of it -> variables of a backbone that comes from the Hub.

The file is distrusted as every file of Keras is. Attention kernels are `[H, heads, H / heads]` and the other way round.
"""

import math
import os
from pathlib import Path

import h5py

from tltrain.errors import WeightsError, foreign_errors
from tltrain.models.backbone import Backbone
from tltrain.weights import hub_layout, keras_file, keras_layout, variables
from tltrain.weights.hub_layout import Leaf
from tltrain.weights.variables import Loaded

_FIRST = "layers/reversible_embedding/vars/0"  # by which the group of the backbone is known: a task nests it
_POOLER = "layers/dense/"


def load(path: str | os.PathLike, backbone: Backbone, shapes: dict, sha256: str = "") -> Loaded:
    """Fills every leaf of a backbone exactly once from a file of KerasHub; arguments and errors as of safetensors."""
    path = Path(path)
    leaves = hub_layout.leaves(backbone, shapes)
    if unknown := [leaf.label for leaf in leaves if leaf.keras_name is None]:
        raise WeightsError(
            f"{path} is a file of Keras, of which {type(backbone).__name__} cannot be read "
            f"({variables.some(unknown, 3)}); give a model.safetensors of the same network"
        )
    max_bytes = variables.max_bytes(leaf.shape for leaf in leaves)
    found = variables.admit(path, max_bytes, sha256)
    with (
        foreign_errors(WeightsError, f"cannot read {path} as a file of KerasHub", "fetch or save the file again"),
        keras_file.opened(path, max_bytes) as file,
    ):
        datasets, faults = keras_file.datasets(file, max_bytes)
        root = _root(path, datasets)
        chosen: dict[Leaf, h5py.Dataset] = {}
        for leaf in leaves:
            if (dataset := datasets.get(f"{root}{leaf.keras_name}")) is None:
                faults.append(f"missing {root}{leaf.keras_name} ({leaf.label})")
            elif misfits := _misfits(dataset, leaf):
                faults += misfits
            else:
                faults += keras_file.storage_faults(dataset, leaf.label)
                chosen[leaf] = dataset
        ignored, unexpected = _rest(root, datasets, {f"{root}{leaf.keras_name}" for leaf in leaves})
        if faults := faults + unexpected:
            raise variables.unfit(path, len(leaves), faults)
        arrays = {leaf: variables.float32(dataset[()]).reshape(leaf.shape) for leaf, dataset in chosen.items()}
    return variables.filled(path, arrays, found, ignored)


def _root(path, datasets):
    """The group of the backbone in the file."""
    roots = [name.removesuffix(_FIRST) for name in datasets if f"/{name}".endswith(f"/{_FIRST}")]
    if len(roots) != 1:
        raise WeightsError(
            f"{path} holds {len(roots) or 'no'} backbones of KerasHub's BERT, where one is read; give a "
            "model.safetensors, or what keras_hub.models.BertBackbone saves by save_weights('model.weights.h5')"
        )
    return roots[0]


def _misfits(dataset, leaf):
    """As `keras_layout.misfits`; heads are an axis of their own, before or after that of the features."""
    shape, wanted = dataset.shape, leaf.shape
    is_attention = ".attention." in leaf.layer and "LayerNorm" not in leaf.layer
    if shape != wanted and not (is_attention and _is_split(shape, wanted)):
        return [f"misshapen {dataset.name.lstrip('/')}: {shape}, expected {wanted}"]
    if dataset.dtype.name not in keras_layout.DTYPES:
        expected = " or ".join(keras_layout.DTYPES.values())
        return [f"misshapen {dataset.name.lstrip('/')}: dtype {dataset.dtype}, expected {expected}"]
    return []


def _is_split(shape, wanted):
    """Whether `shape` is `wanted` with its first or its last axis as two."""
    last = (*shape[:-2], math.prod(shape[-2:]))
    first = (math.prod(shape[:2]), *shape[2:])
    return len(shape) == len(wanted) + 1 and wanted in (last, first)


def _rest(root, datasets, used):
    """The groups that the backbone does not use, and what is unexpected within its own group."""
    ignored, unexpected = set(), []
    for name in sorted(set(datasets) - used):
        inner = name.removeprefix(root)
        if not name.startswith(root):
            ignored.add(name.partition("/vars/")[0])
        elif inner.startswith(_POOLER):
            ignored.add("pooler")
        else:
            unexpected.append(f"unexpected {name}")
    return sorted(ignored), unexpected
