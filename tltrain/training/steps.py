"""One step of training and of evaluation: pure functions of a state and a global batch, without I/O."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from tltrain.data.pipeline import Batch
from tltrain.models import freeze
from tltrain.models.classifier import Classifier, run_frozen
from tltrain.training import metrics, mix

_OF_BATCH = 2**31  # what no index of an example is: folded into a step's key for what all of its batch share


@flax.struct.dataclass
class TrainState:
    """All that training changes: `step` int32 of this phase, `params`, `batch_stats`, `opt_state`, `average`.

    `average` is the moving average of the trainable leaves, a tree like `params` with None elsewhere; None: there is
    none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any


def create_state(
    params: Any, batch_stats: Any, tx: optax.GradientTransformation, plan: freeze.Plan, ema: float
) -> TrainState:
    """The state at step 0 of a phase: parameters carried over, optimizer fresh, their average begun at them."""
    # a copy: the memory of a state is handed on to the next
    average = jax.tree.map(jnp.array, freeze.split(params, plan.labels)[0]) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), average)


def variables(state: TrainState) -> dict:
    """The model that `state` stands for: what is evaluated and handed on. Averaged leaves are those of the average.

    BatchNorm statistics are not averaged twice: they are a moving average already.
    """
    params = state.params if state.average is None else freeze.merge(state.average, state.params)
    return {"params": params, "batch_stats": state.batch_stats}


def example_losses(logits: jax.Array, label: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Cross entropy `[B]` in nats of float32 `logits` `[B, D]` for int32 `label` `[B]`: binary where `D` is 1."""
    if logits.shape[-1] == 1:
        target = label.astype(jnp.float32) * (1 - smoothing) + smoothing / 2
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], target)
    target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, target)


def _batch_losses(logits, batch, smoothing, class_weights):
    """Weighted losses `[B]`; of a mixed batch those for both labels of a row, by their share."""

    def losses(label):
        return example_losses(logits, label, smoothing) * class_weights[label]

    if "other" not in batch:
        return losses(batch["label"])
    return batch["share"] * losses(batch["label"]) + (1 - batch["share"]) * losses(batch["other"])


def predicted_class(logits: jax.Array) -> jax.Array:
    """int32 `[B]` of `logits` `[B, D]`."""
    if logits.shape[-1] == 1:
        return (logits[:, 0] > 0).astype(jnp.int32)
    return logits.argmax(-1).astype(jnp.int32)


def probabilities(logits: jax.Array) -> jax.Array:
    """Float32 `[B, num_classes]` of `logits` `[B, D]`; they sum to one."""
    if logits.shape[-1] == 1:
        return nn.sigmoid(jnp.concatenate([-logits, logits], -1))
    return nn.softmax(logits)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Classifier,
    tx: optax.GradientTransformation,
    plan: freeze.Plan,
    start: int,
    seed: int,
    batch_norm_train: bool,
    smoothing: float,
    class_weights: jax.Array,
    ema: float,
    mixup: float,
    cutmix: float,
    axis_name: str | None = None,
) -> tuple[TrainState, tuple[metrics.Metrics, jax.Array]]:
    """One update of the trainable leaves.

    The gradient is taken of the trainable part alone, from the activations at the cut, so a backward pass of frozen
    stages does not exist. Everything random follows from `seed`, `state.step` and `batch["index"]`.

    Args:
        state: replicated.
        batch: the global batch; its inputs are pixels where `start` is 0, else activations before stage `start`.
        model: the classifier.
        tx: optimizer over all of `params`, labelled as `plan` says.
        plan: what is frozen in this step.
        start: first stage to run, at most `plan.cut`.
        seed: of dropout and of mixing.
        batch_norm_train: trainable stages normalise by the batch.
        smoothing: of labels.
        class_weights: float32 `[num_classes]`, factors of each example's loss.
        ema: share of the old average of the trainable leaves that a step keeps (Polyak & Juditsky 1992); 0: none.
        mixup: alpha of mixup, as for `mix.mixed`; like `cutmix` it needs pixels, and accuracy is then counted against
            the label of the larger weight.
        cutmix: alpha of CutMix.
        axis_name: mapped axis over which sums are taken; None where `batch` is global.

    Returns:
        The new state, and the metrics before the update with the global norm of the trainable gradients.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["index"])
    if mixup or cutmix:
        batch = mix.mixed(batch, jax.random.fold_in(key, _OF_BATCH), mixup, cutmix, axis_name)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    inputs = run_frozen(model, variables, batch["inputs"], start, plan.cut)
    trainable, frozen = freeze.split(state.params, plan.labels)

    def summed_loss(trainable):
        variables = {"params": freeze.merge(trainable, frozen), "batch_stats": state.batch_stats}
        logits, updated = model.apply(variables, inputs, plan.cut, batch_norm_train, keys, mutable=["batch_stats"])
        losses = _batch_losses(logits, batch, smoothing, class_weights)
        batch_stats = updated.get("batch_stats", state.batch_stats)
        return jnp.where(batch["mask"], losses, 0.0).sum(), (logits, losses, batch_stats)

    grads, (logits, losses, batch_stats) = jax.grad(summed_loss, has_aux=True)(trainable)
    counted = metrics.of_batch(losses, predicted_class(logits), batch["label"], batch["mask"])
    grads, counted = _sum_over(axis_name, (grads, counted))
    grads = jax.tree.map(lambda g: g / jnp.maximum(counted.count, 1), grads)
    moved, opt_state = _update(state, tx, grads, trainable, frozen)
    average = _averaged(state.average, moved, ema) if ema else None
    state = TrainState(state.step + 1, freeze.merge(moved, frozen), batch_stats, opt_state, average)
    return state, (counted, optax.tree.norm(grads))


def _update(state, tx, grads, trainable, frozen):
    """Applies `tx` to the trainable leaves; frozen ones it never meets, so not even the sign of a zero changes."""
    zeros = jax.tree.map(lambda leaf: None if leaf is None else jnp.zeros_like(leaf), frozen, is_leaf=_is_none)
    updates, opt_state = tx.update(freeze.merge(grads, zeros), state.opt_state, state.params)
    moved = jax.tree.map(lambda p, u: None if p is None else p + u, trainable, updates, is_leaf=_is_none)
    return moved, opt_state


def _averaged(average, moved, ema):
    """The average after a step; a leaf that is frozen so far is the average of itself."""
    return jax.tree.map(lambda a, p: a if p is None else ema * a + (1 - ema) * p, average, moved, is_leaf=_is_none)


def _is_none(x):
    return x is None


def _sum_over(axis_name, tree):
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def eval_step(
    variables: dict, batch: Batch, *, model: Classifier, axis_name: str | None = None
) -> tuple[metrics.Metrics, jax.Array]:
    """Metrics summed over the unmasked rows of the global batch, and float32 logits `[B, D]` of all rows.

    The inputs of `batch` are pooled features `[B, C]`; of `variables` only `params["head"]` is used.
    """
    logits: Any = model.apply(variables, batch["inputs"], len(model.backbone.stages))
    losses = example_losses(logits, batch["label"])
    counted = metrics.of_batch(losses, predicted_class(logits), batch["label"], batch["mask"])
    return _sum_over(axis_name, counted), logits
