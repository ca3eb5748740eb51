"""A `model.safetensors` of the Hub -> backbone variables; all faults are named at once, and none is loaded then.

The library proves that a header is sound: no array beyond the file, none over another, no gap. Its memory follows the
header, so a large one is refused before; the header is compared with the backbone's own table before a byte of an
array is read.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - NumPy knows bfloat16 by it
import numpy as np
from safetensors import safe_open

from tltrain import hub
from tltrain.errors import WeightsError, foreign_errors
from tltrain.models.backbone import Backbone
from tltrain.weights import hub_layout, variables
from tltrain.weights.hub_layout import Leaf
from tltrain.weights.variables import Loaded

_DTYPES = ("F32", "F16", "BF16", "F64")


class _Declared(NamedTuple):
    """What a header says of an array."""

    dtype: str
    shape: tuple[int, ...]


def load(path: str | os.PathLike, backbone: Backbone, shapes: dict, sha256: str = "") -> Loaded:
    """Fills every leaf of a backbone exactly once from a safetensors file; arguments but `backbone` as of Keras' files.

    Raises:
        WeightsError: the file is another one, is damaged or of another network; or leaves are missing, misshapen,
            unexpected or ambiguous, all of them named at once; or they hold what no trained network does.
    """
    path = Path(path)
    leaves = hub_layout.leaves(backbone, shapes)
    found = variables.admit(path, variables.max_bytes(leaf.shape for leaf in leaves), sha256)
    with foreign_errors(WeightsError, f"cannot read {path} as safetensors", "fetch or save the file again"):
        hub.header_of(path)  # too long a one ends here: the library takes memory by it
        with safe_open(path, framework="numpy") as file:
            declared = {name: _declared(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
            prefix = _prefix(path, backbone, leaves, declared)
            faults, chosen = _match(leaves, declared, prefix)
            ignored, unexpected = _rest(backbone, set(declared) - set(chosen.values()), declared, prefix)
            if faults := faults + unexpected:
                raise variables.unfit(path, len(leaves), faults)
            arrays = {leaf: _read(file, name, leaf) for leaf, name in chosen.items()}
    return variables.filled(path, arrays, found, ignored)


def _declared(array: Any) -> _Declared:
    return _Declared(array.get_dtype(), tuple(array.get_shape()))


def _prefix(path, backbone, leaves, declared):
    """What stands before most names; raises where no array of the backbone is in the file."""
    counts = {
        prefix: sum(any(prefix + name in declared for name in leaf.names) for leaf in leaves)
        for prefix in ("", *backbone.hub_prefixes)
    }
    if not any(counts.values()):
        raise WeightsError(
            f"{path} is of another network; none of the {len(leaves)} arrays of the backbone is in it, but "
            f"{variables.some(sorted(map(_shown, declared)), 3) or 'nothing'}; set model.backbone to its network"
        )
    return max(counts, key=lambda prefix: counts[prefix])


def _match(leaves: list[Leaf], declared: dict[str, _Declared], prefix: str) -> tuple[list[str], dict[Leaf, str]]:
    faults: list[str] = []
    chosen: dict[Leaf, str] = {}
    for leaf in leaves:
        names = [prefix + name for name in leaf.names if prefix + name in declared]
        if len(names) > 1:
            faults.append(f"ambiguous {leaf.label} ({', '.join(names)})")
        elif not names:
            faults.append(f"missing {prefix}{leaf.label}")
        else:
            expected = leaf.shape[::-1] if leaf.is_transposed else leaf.shape
            dtype, shape = declared[names[0]]
            if shape != expected:
                faults.append(f"misshapen {names[0]}: {_shown(str(shape))}, expected {expected}")
            elif dtype not in _DTYPES:
                faults.append(f"misshapen {names[0]}: dtype {dtype}, expected {' or '.join(_DTYPES)}")
        if names:
            chosen[leaf] = names[0]
    return faults, chosen


def _rest(backbone, names, declared, prefix):
    """The groups of `names` that are known and not used, without buffers of positions; and what is unexpected."""
    ignored, unexpected = set(), []
    for name in sorted(names):
        stripped = name.removeprefix(prefix)
        if not any(re.fullmatch(pattern, stripped) for pattern in backbone.hub_unused):
            unexpected.append(f"unexpected {_shown(name)}")
        elif not stripped.endswith("position_ids"):
            ignored.add(stripped.partition(".")[0])
    return sorted(ignored), unexpected


def _read(file: Any, name: str, leaf: Leaf) -> np.ndarray:
    array = variables.float32(file.get_tensor(name))
    return array.T if leaf.is_transposed else array


def _shown(name):
    """A name of the file in a message: printable, and not long."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name[:80])
    return text + ("..." if len(name) > 80 else "")
