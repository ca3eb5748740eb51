"""What all readers of weight files share: which files are admitted, which values are refused, what is given back."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from tltrain.errors import WeightsError
from tltrain.weights import download

HEAD_BYTES = 2**29  # of what a file may hold beside the backbone; the largest head of keras.applications has 494 MB
MAX_WEIGHT = 1e6  # of a deviation too, whose square is stored


class Leaf(Protocol):
    """One array of a backbone: `path` is its place in our tree, `label` what messages call it."""

    @property
    def path(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def label(self) -> str: ...  # noqa: D102


AnyLeaf = TypeVar("AnyLeaf", bound=Leaf)


@dataclass(frozen=True)
class Loaded:
    """What was read: `variables` `{"params": ..., "batch_stats": ...}`, and what to tell the user about it."""

    variables: dict
    sha256: str
    num_arrays: int
    ignored: tuple[str, ...]


def max_bytes(shapes: Iterable[Sequence[int]]) -> int:
    """How large a file with arrays of these `shapes` may be: Adam keeps two beside each, and there may be a head."""
    return 4 * sum(4 * math.prod(shape) for shape in shapes) + HEAD_BYTES


def admit(path: Path, limit: int, sha256: str) -> str:
    """The sha256 of the file `path`, which has at most `limit` bytes and, where it is not "", the hash `sha256`.

    Raises:
        WeightsError: there is no such file, it is larger, or another.
    """
    if (num_bytes := download.num_bytes(path)) > limit:
        raise WeightsError(
            f"{path} has {num_bytes} bytes, at most {limit} are read for this backbone; "
            "save the backbone alone, without a head and an optimizer"
        )
    found = download.digest(path, "sha256")
    if sha256 and found != sha256.lower():
        raise WeightsError(
            f"{path} is not the file that is pinned; its sha256 is {found}, model.sha256 is {sha256}; "
            "fetch the file again, or pin the one you trust"
        )
    return found


def unfit(path: Path, num_leaves: int, faults: Sequence[str]) -> WeightsError:
    """The error of a file whose arrays are not those of a backbone of `num_leaves` arrays, with all `faults`."""
    return WeightsError(
        f"{path} does not fit the backbone ({num_leaves} arrays); {some(faults)}; "
        "check model.backbone against the model the file was saved from"
    )


def filled(path: Path, arrays: Mapping[AnyLeaf, np.ndarray], sha256: str, ignored: Iterable[str]) -> Loaded:
    """What the file `path` with hash `sha256` gave, float32; `ignored` are groups that the backbone does not use.

    Raises:
        WeightsError: arrays hold what no trained network does, all of them named at once.
    """
    if faults := [fault for leaf, array in arrays.items() if (fault := _value_fault(leaf, array))]:
        raise WeightsError(f"{path} holds what no trained network does; {some(faults)}; fetch the file again")
    variables = nest({leaf.path: array for leaf, array in arrays.items()})
    return Loaded(variables, sha256, len(arrays), tuple(ignored))


def float32(array: np.ndarray) -> np.ndarray:
    """`array` of any float dtype as float32."""
    if array.dtype == "V2":  # bfloat16 in Keras: the upper half of a float32
        array = (array.view("<u2").astype("<u4") << 16).view("<f4")
    with np.errstate(all="ignore"):  # what overflows is infinite then, and refused
        return np.asarray(array, np.float32)


def _value_fault(leaf: Leaf, array: np.ndarray) -> str | None:
    is_variance = leaf.path[-1] == "var"
    limit = MAX_WEIGHT**2 if is_variance else MAX_WEIGHT
    if not np.isfinite(array).all():
        return f"NaN or infinite {leaf.label}"
    if is_variance and array.min() < 0:
        return f"negative {leaf.label}"
    if leaf.path[-1].endswith("kernel") and not array.any():
        return f"all-zero {leaf.label}"
    if max(array.max(), -array.min()) >= limit:
        return f"{leaf.label} of {limit:g} or more"
    return None


def some(names: Sequence[str], limit: int = 40) -> str:
    """The first `limit` of `names` in a line, and how many more there are."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def nest(arrays: Mapping[tuple[str, ...], np.ndarray]) -> dict:
    """`{"params": {stage: {layer: {leaf: array}}}, "batch_stats": ...}` of arrays by their path."""
    tree: dict = {"params": {}, "batch_stats": {}}
    for path, array in arrays.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = array
    return tree
