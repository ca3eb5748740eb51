"""A phase of the config -> learning-rate schedule and optimizer of the trainable leaves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from tltrain.models import freeze
from tltrain.rules import SOLVED


def make_schedule(phase: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from zero, then constant, or cosine to zero at the last step."""
    total = phase.epochs * steps_per_epoch
    warmup = round(phase.warmup_epochs * steps_per_epoch)
    if phase.schedule == "cosine":
        after = optax.cosine_decay_schedule(phase.learning_rate, max(total - warmup, 1))
    else:
        after = optax.constant_schedule(phase.learning_rate)
    # step 0 of a warm-up of n steps gets 1/n of the rate: a step at rate zero would be a step lost
    rise = optax.linear_schedule(phase.learning_rate / max(warmup, 1), phase.learning_rate, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup]) if warmup else after


def make(
    phase: ConfigDict, schedule: optax.Schedule, plan: freeze.Plan, now: freeze.Plan
) -> optax.GradientTransformation:
    """The optimizer of a tree labelled `"trainable"` and `"frozen"` by `plan`, of which `now` trains.

    The state's structure follows `plan` alone. With gradual unfreezing (`freeze.at_epoch`) each stage has a state of
    its own, which does not move, nor does its count of steps, before the stage trains; schedules count the steps of the
    phase.

    Frozen leaves get no update and no slots. Clipping and weight decay stand inside the trainable branch, so neither
    sees a frozen leaf; decay spares leaves of fewer than two axes (norms and biases).

    With `l2_sp` (Li et al. 2018, arXiv 1802.01483) the loss has `l2_sp / 2` times the squared distance of the trainable
    backbone from where the phase began: the paper's alpha. Its beta, the pull of the head to zero, is `weight_decay`,
    which then spares the backbone.
    """
    decay = optax.add_decayed_weights(phase.weight_decay, mask=_is_head_kernel if phase.l2_sp else _is_kernel)
    clip = optax.clip_by_global_norm(phase.clip_norm) if phase.clip_norm else optax.identity()
    if phase.optimizer in SOLVED:
        steps = [optax.identity()]  # solved, not stepped
    elif phase.optimizer == "sgd":
        steps = [decay, optax.trace(phase.momentum)]
    else:
        steps = [optax.scale_by_adam(), decay if phase.optimizer == "adamw" else optax.identity()]
    if phase.l2_sp:
        steps.insert(0, optax.masked(_pull_to_start(phase.l2_sp), {"backbone": True, "head": False}))
    if phase.unfreeze_every_epochs:
        steps = [_by_stage(optax.chain(*steps), plan, now)]
    rates = [optax.scale_by_learning_rate(schedule)]
    if phase.layer_decay != 1:
        rates.append(_by_depth(phase.layer_decay, plan.stages))
    return optax.multi_transform(
        {"trainable": optax.chain(clip, *steps, *rates), "frozen": optax.set_to_zero()}, plan.labels
    )


def _is_kernel(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _is_head_kernel(params):
    return {"backbone": False, "head": _is_kernel(params["head"])}


class _Start(NamedTuple):
    """Parameters at the start of a phase."""

    params: Any


def _pull_to_start(strength):
    """Adds the gradient of `strength / 2` times the squared distance from the parameters at the start."""

    def init(params):
        return _Start(jax.tree.map(jnp.array, params))  # a copy: the memory of a state is handed on to the next

    def update(updates, state, params):
        return jax.tree.map(lambda u, p, start: u + strength * (p - start), updates, params, state.params), state

    return optax.GradientTransformation(init, update)


def _by_stage(inner, plan, now):
    """`inner` apart for each trainable stage of `plan` and the head; held as it is for a stage that `now` freezes."""
    held = optax.GradientTransformation(inner.init, lambda updates, state, _: (optax.tree.zeros_like(updates), state))
    labels = {stage: "frozen" if i < plan.cut else stage for i, stage in enumerate(plan.stages)}
    transforms = {stage: held if i < now.cut else inner for i, stage in enumerate(plan.stages) if i >= plan.cut}
    transforms |= {"head": inner, "frozen": optax.set_to_zero()}
    return optax.multi_transform(transforms, {"backbone": labels, "head": "head"})


def _by_depth(decay, stages):
    """Scales updates by `decay` to the power of their depth below the head, the last stage's being 1.

    As ELECTRA (Clark et al. 2020, arXiv 2003.10555) and BEiT (Bao et al. 2021, arXiv 2106.08254) do by layer; the
    discriminative rates of ULMFiT.
    """
    factors = {stage: decay ** (len(stages) - i) for i, stage in enumerate(stages)}

    def scale(updates, _):
        backbone = {
            stage: jax.tree.map(lambda u, factor=factors[stage]: factor * u, tree)
            for stage, tree in updates["backbone"].items()
        }
        return updates | {"backbone": backbone}

    return optax.stateless(scale)
