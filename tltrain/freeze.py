"""`freeze_until` -> what is frozen: the cut between stages, the label tree, and the two parts of the parameters."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from tltrain.errors import ConfigError


class Plan(NamedTuple):
    """`cut`: index of the first trainable stage; `labels`: a tree like `params` of `"frozen"` and `"trainable"`."""

    cut: int
    labels: Any


def cut(stages: Sequence[str], freeze_until: str | None) -> int:
    """Index of the first trainable stage: one more than that of `freeze_until`.

    `"all"` gives the number of stages, None (or `"none"`, as a command line says it) gives 0.

    Raises:
        ConfigError: `freeze_until` names no stage.
    """
    ends = {None: 0, "none": 0, "all": len(stages)} | {name: i + 1 for i, name in enumerate(stages)}
    if freeze_until not in ends:
        raise ConfigError(f"freeze_until = {freeze_until!r} is no stage; allowed: 'all', None, {', '.join(stages)}")
    return ends[freeze_until]


def plan(params: Any, stages: Sequence[str], freeze_until: str | None) -> Plan:
    """Labels every leaf of `params` by the depth of its stage. The head is always trainable.

    Args:
        params: `{"backbone": {stage: ...}, "head": ...}`, arrays or shapes.
        stages: stage names in forward order.
        freeze_until: the last frozen stage, as for `cut`.

    Raises:
        ConfigError: `freeze_until` names no stage.
        ValueError: the stages of `params` are not `stages`: one that is not listed would stay trainable unnoticed.
    """
    if set(params["backbone"]) != set(stages):
        raise ValueError(f"stages of params {sorted(params['backbone'])} are not {sorted(stages)}")
    index = cut(stages, freeze_until)
    frozen = set(stages[:index])
    labels = {
        "backbone": {
            stage: jax.tree.map(lambda _, stage=stage: "frozen" if stage in frozen else "trainable", tree)
            for stage, tree in params["backbone"].items()
        },
        "head": jax.tree.map(lambda _: "trainable", params["head"]),
    }
    return Plan(index, labels)


def prefixes(stages: Sequence[str], cut: int) -> tuple[str, ...]:
    """How the names of the leaves of a `TrainState` begin that never change when the first `cut` stages are frozen."""
    return tuple(f"{part}.backbone.{stage}." for part in ("params", "batch_stats") for stage in stages[:cut])


def split(tree: Any, labels: Any) -> tuple[Any, Any]:
    """`(trainable, frozen)`: two trees like `tree`, with None where a leaf belongs to the other."""
    trainable = jax.tree.map(lambda leaf, label: leaf if label == "trainable" else None, tree, labels)
    frozen = jax.tree.map(lambda leaf, label: leaf if label == "frozen" else None, tree, labels)
    return trainable, frozen


def merge(trainable: Any, frozen: Any) -> Any:
    """The tree that `split` took apart."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda x: x is None)
