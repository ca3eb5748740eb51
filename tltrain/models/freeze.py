"""`freeze_until` -> what is frozen: the cut between stages, the label tree, and the two parts of the parameters."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from tltrain.errors import ConfigError
from tltrain.models import adapters


class Plan(NamedTuple):
    """What trains: the head, and of the `stages`, in forward order, the leaves of a kind in those from index `cut` on.

    `train_only` is the kind: `"all"`, `"batch_norm"` (scale and bias of normalisation; Frankle et al. 2021, arXiv
    2003.00152), `"bias"` (of every layer, normalisation included; BitFit, Ben Zaken et al. 2022, arXiv 2106.10199) or
    `"lora"`, the factors that `lora` describes. A stage from `cut` on is trainable even where some of its leaves are
    not: the gradient passes it, and its BatchNorm follows the config.
    """

    stages: tuple[str, ...]
    cut: int
    train_only: str = "all"
    lora: adapters.Lora | None = None

    def labels(self, params: Any) -> Any:
        """A tree like `params`, arrays or shapes, of `"frozen"` and `"trainable"`.

        Raises:
            ValueError: `params` has a stage that is none of `stages`: it would stay trainable unnoticed.
        """
        if unknown := set(params["backbone"]) - set(self.stages):
            raise ValueError(f"stages of params {sorted(unknown)} are not among {self.stages}")
        frozen = set(self.stages[: self.cut])
        backbone = {
            stage: {
                layer: {
                    name: "frozen" if stage in frozen or not _trains(name, leaves, self.train_only) else "trainable"
                    for name in leaves
                }
                for layer, leaves in layers.items()
            }
            for stage, layers in params["backbone"].items()
        }
        return {"backbone": backbone, "head": jax.tree.map(lambda _: "trainable", params["head"])}


def named(stages: Sequence[str], freeze_until: str | None) -> str | None:
    """`freeze_until`; of "auto" the stage before the last quarter of `stages`, and None as a command line says it."""
    if freeze_until in ("none", "None"):
        return None
    return stages[-1 - math.ceil(len(stages) / 4)] if freeze_until == "auto" else freeze_until


def cut(stages: Sequence[str], freeze_until: str | None) -> int:
    """Index of the first trainable stage: one more than that of `freeze_until`.

    `"all"` gives the number of stages, None (or `"none"`, as workdirs of old have it) gives 0.

    Raises:
        ConfigError: `freeze_until` names no stage.
    """
    ends = {None: 0, "none": 0, "all": len(stages)} | {name: i + 1 for i, name in enumerate(stages)}
    if freeze_until not in ends:
        raise ConfigError(
            f"freeze_until = {freeze_until!r} is no stage; allowed: 'all', 'auto', None, {', '.join(stages)}"
        )
    return ends[freeze_until]


def plan(stages: Sequence[str], freeze_until: str | None, train_only: str = "all") -> Plan:
    """What trains where `freeze_until` names the last frozen of `stages`, as for `cut`; raises ConfigError as it does.

    `train_only` is the kind of leaves that train in the stages after it, see `Plan`.
    """
    return Plan(tuple(stages), cut(stages, freeze_until), train_only)


def of_phase(config: ConfigDict, phase: str, stages: Sequence[str]) -> Plan:
    """What trains in `phase` of a whole `config`, at its end where stages are unfrozen one by one; raises as `cut`."""
    options = config[phase]
    found = plan(stages, options.freeze_until, options.train_only)
    if options.train_only != "lora":
        return found
    return found._replace(lora=adapters.Lora(**options.lora, seed=config.seed))


def with_factors(params: Any, plan: Plan) -> Any:
    """`params`, arrays or shapes, with all that trains by `plan`: see `adapters.with_factors`."""
    return adapters.with_factors(params, plan.stages[plan.cut :], plan.lora)


def at_epoch(plan: Plan, epoch: int, every: int) -> Plan:
    """What of `plan` trains in `epoch`, from 0, where one more stage is unfrozen `every` so many epochs, from the top.

    The head trains alone first (gradual unfreezing: ULMFiT, Howard & Ruder 2018, arXiv 1801.06146). With `every` 0 all
    of `plan` trains from the start.
    """
    return plan._replace(cut=max(plan.cut, len(plan.stages) - epoch // every)) if every else plan


def num_epochs_to(cut: int, num_stages: int, every: int) -> int:
    """Epochs after which, by `at_epoch`, all stages from `cut` on have trained."""
    return every * (num_stages - cut) + 1


def _trains(name, leaves, train_only):
    """Whether the leaf `name` of a layer of `leaves` is of the kind `train_only`."""
    return {
        "all": True,
        "batch_norm": set(leaves) <= {"scale", "bias"},
        "bias": name == "bias",
        "lora": name in adapters.FACTORS,
    }[train_only]


def constants(plan: Plan, params: Any) -> tuple[str, ...]:
    """How the names of the leaves of a `TrainState` of `params`, arrays or shapes, begin that never change."""
    labels = jax.tree_util.tree_leaves_with_path({"params": plan.labels(params)})
    leaves = [jax.tree_util.keystr(path, simple=True, separator=".") for path, label in labels if label == "frozen"]
    return (*leaves, *(f"batch_stats.backbone.{stage}." for stage in plan.stages[: plan.cut]))


def split(params: Any, plan: Plan) -> tuple[Any, Any]:
    """`(trainable, frozen)`: two trees like `params`, with None where a leaf belongs to the other."""
    labels = plan.labels(params)
    trainable = jax.tree.map(lambda leaf, label: leaf if label == "trainable" else None, params, labels)
    frozen = jax.tree.map(lambda leaf, label: leaf if label == "frozen" else None, params, labels)
    return trainable, frozen


def merge(trainable: Any, frozen: Any) -> Any:
    """The tree that `split` took apart."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda x: x is None)
