"""One step of training and of evaluation: pure functions of a state and a global batch, without I/O."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from tltrain.data.pipeline import Batch
from tltrain.models import adapters, freeze
from tltrain.models.classifier import Classifier, run_frozen
from tltrain.runtime import parallel
from tltrain.training import metrics, mix
from tltrain.training.tasks.task import Task

_OF_BATCH = 2**31  # what no index of an example is: folded into a step's key for what all of its batch share


class Recipe(NamedTuple):
    """What is fixed of the training steps of a phase, beside model and optimizer.

    `plan` says what trains in them and `start` is the first stage they run, at most `plan.cut`. `seed` is that of
    dropout and of mixing. With `batch_norm_train` trainable stages normalise by the batch. `ema` is the share of the
    old average of the trainable leaves that a step keeps (Polyak & Juditsky 1992); 0: none. `mixup` and `cutmix` are
    the alphas of `mix.mixed`; they need pixels, and scores are then of the label of the larger weight.
    """

    task: Task
    plan: freeze.Plan
    start: int
    seed: int
    batch_norm_train: bool
    ema: float
    mixup: float
    cutmix: float


def recipe(config: ConfigDict, phase: str, task: Task, plan: freeze.Plan, start: int) -> Recipe:
    """That of a phase of `config`; the other arguments are those of `Recipe`."""
    options = config[phase]
    batch_norm_train = options.batch_norm == "train"
    return Recipe(task, plan, start, config.seed, batch_norm_train, options.ema, options.mixup, options.cutmix)


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
    """The state at step 0 of a phase: parameters carried over, optimizer fresh, their average begun at them.

    Factors of LoRA are new where `plan` has them.
    """
    params = freeze.with_factors(params, plan)
    # a copy: the memory of a state is handed on to the next
    average = jax.tree.map(jnp.array, freeze.split(params, plan)[0]) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), average)


def variables(state: TrainState, plan: freeze.Plan) -> dict:
    """The model that `state` of a phase with `plan` stands for: what is evaluated and handed on.

    Averaged leaves are those of the average, and factors of LoRA are part of their kernels. BatchNorm statistics are
    not averaged twice: they are a moving average already.
    """
    params = state.params if state.average is None else freeze.merge(state.average, state.params)
    return {"params": adapters.merged(params, plan.lora), "batch_stats": state.batch_stats}


def _train_losses(task, logits, batch):
    """Losses `[B]`; of a mixed batch those for both labels of a row, by their share."""
    losses = task.train_losses(logits, batch["label"])
    if "other" not in batch:
        return losses
    return batch["share"] * losses + (1 - batch["share"]) * task.train_losses(logits, batch["other"])


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Classifier,
    tx: optax.GradientTransformation,
    recipe: Recipe,
    axis_name: str | None = None,
) -> tuple[TrainState, tuple[metrics.Metrics, jax.Array]]:
    """One update of the trainable leaves.

    The gradient is taken of the trainable part alone, from the activations at the cut, so a backward pass of frozen
    stages does not exist. Everything random follows from `recipe.seed`, `state.step` and `batch["index"]`.

    Args:
        state: replicated.
        batch: the global batch; its inputs are rows of examples where `recipe.start` is 0, else the activations before
            that stage.
        model: the classifier.
        tx: optimizer over all of `params`, labelled as `recipe.plan` says.
        recipe: of the phase.
        axis_name: mapped axis over which sums are taken; None where `batch` is global.

    Returns:
        The new state, and the metrics before the update with the global norm of the trainable gradients.
    """
    plan, trained = recipe.plan, model.clone(backbone=model.backbone.clone(scan=True))
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["index"])
    if recipe.mixup or recipe.cutmix:
        batch = mix.mixed(batch, jax.random.fold_in(key, _OF_BATCH), recipe.mixup, recipe.cutmix, axis_name)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    inputs = run_frozen(model, variables, batch["inputs"], recipe.start, plan.cut)
    trainable, frozen = freeze.split(state.params, plan)

    def summed_loss(trainable):
        variables = {"params": freeze.merge(trainable, frozen), "batch_stats": state.batch_stats}
        with adapters.applied(plan.lora):
            logits, updated = trained.apply(
                variables, inputs, plan.cut, recipe.batch_norm_train, keys, mutable=["batch_stats"]
            )
        losses = _train_losses(recipe.task, logits, batch)
        batch_stats = updated.get("batch_stats", state.batch_stats)
        return jnp.where(batch["mask"], losses, 0.0).sum(), (logits, losses, batch_stats)

    grads, (logits, losses, batch_stats) = jax.grad(summed_loss, has_aux=True)(trainable)
    counted = metrics.of_batch(losses, recipe.task.score(logits, batch["label"]), batch["mask"])
    grads, counted = parallel.total((grads, counted), axis_name)
    grads = jax.tree.map(lambda g: g / jnp.maximum(counted.count, 1), grads)
    moved, opt_state = _update(state, tx, grads, trainable, frozen)
    average = _averaged(state.average, moved, recipe.ema) if recipe.ema else None
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


def eval_step(
    variables: dict, batch: Batch, *, model: Classifier, task: Task, axis_name: str | None = None
) -> tuple[metrics.Metrics, jax.Array]:
    """Metrics summed over the unmasked rows of the global batch, and float32 logits `[B, D]` of all rows.

    The inputs of `batch` are pooled features `[B, C]`; of `variables` only `params["head"]` is used.
    """
    logits: Any = model.apply(variables, batch["inputs"], len(model.backbone.stages))
    losses, scores = task.losses(logits, batch["label"]), task.score(logits, batch["label"])
    counted = metrics.of_batch(losses, scores, batch["mask"])
    return parallel.total(counted, axis_name), logits
