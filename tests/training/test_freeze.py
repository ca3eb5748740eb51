"""Frozen means frozen: labels, gradients, statistics, optimizer slots and the work that is done."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY

from tltrain.config import default
from tltrain.errors import ConfigError
from tltrain.models import freeze, zoo
from tltrain.models.classifier import run_frozen
from tltrain.training import optim, steps
from tltrain.training.tasks.classification import Classification, cross_entropy

CUTS = {None: 0, "block_1": 3, "all": 5}
BATCH, SIZE = 8, 32
OPTIMIZERS = {
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd": {"optimizer": "sgd", "weight_decay": 0.1},
    "clipped": {"optimizer": "adam", "clip_norm": 0.1, "schedule": "cosine", "warmup_epochs": 1.0},
    "bias_only": {"train_only": "bias"},
    "lora": {"train_only": "lora", "lora": {"targets": ("all",)}},
}


SMOOTH = Classification(("a", "b", "c"), sigmoid=False, smoothing=0.1, class_weights=(1.0, 1.0, 1.0))


@functools.cache
def model_and_variables(num_classes=3):
    config = default()
    config.model.dropout = 0.2
    model = zoo.create(config, num_classes).clone(backbone=TINY())
    return model, zoo.init(model, 0, None)


def batch_of(seed=0, num_classes=3, size=SIZE):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.integers(0, 256, (BATCH, size, size, 3)).astype(np.uint8),
        "label": rng.integers(0, num_classes, BATCH).astype(np.int32),
        "mask": np.arange(BATCH) < BATCH - 1,
        "index": np.arange(BATCH, dtype=np.int32),
    }


def step_of(freeze_until, start=0, batch_norm_train=True, epoch=0, made=None, task=SMOOTH, **phase_options):
    """A train step as the loop makes it, with its initial state and its plan in `epoch`."""
    model, variables = made or model_and_variables()
    config = default()
    phase = config.finetune
    phase.update({"epochs": 2, "learning_rate": 1e-2, "freeze_until": freeze_until} | phase_options)
    plan = freeze.of_phase(config, "finetune", model.backbone.stages)
    now = freeze.at_epoch(plan, epoch, phase.unfreeze_every_epochs)
    tx = optim.make(phase, optim.make_schedule(phase, 2), plan, now)
    mixing = (phase.mixup, phase.cutmix)
    recipe = steps.Recipe(task, now, start, 0, batch_norm_train, phase.ema, *mixing)
    step = functools.partial(steps.train_step, model=model, tx=tx, recipe=recipe)
    return step, steps.create_state(variables["params"], variables["batch_stats"], tx, plan, phase.ema), now


def same(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


ONE_OF_EACH = [*((cut, "adam") for cut in CUTS), *(("block_1", optimizer) for optimizer in OPTIMIZERS)]


@pytest.mark.optimized
@pytest.mark.parametrize(("freeze_until", "optimizer"), dict.fromkeys(ONE_OF_EACH), ids=str)
def test_frozen_leaves_stay_bitwise_and_trainable_ones_move(freeze_until, optimizer):
    step, state, plan = step_of(freeze_until, **OPTIMIZERS[optimizer])
    before = state
    jitted = jax.jit(step)
    for i in range(3):
        state, _ = jitted(state, batch_of(i))
    unchanged = jax.tree.map(same, before.params, state.params)
    assert jax.tree.map(lambda label: label == "frozen", plan.labels(before.params)) == unchanged
    stages = model_and_variables()[0].backbone.stages
    for i, stage in enumerate(stages):
        kept = jax.tree.map(same, before.batch_stats["backbone"][stage], state.batch_stats["backbone"][stage])
        assert set(jax.tree.leaves(kept)) == {i < CUTS[freeze_until]}, stage


def test_statistics_stay_where_trainable_stages_run_in_inference_mode():
    step, state, _ = step_of("block_1", batch_norm_train=False)
    after, _ = jax.jit(step)(state, batch_of())
    assert all(jax.tree.leaves(jax.tree.map(same, state.batch_stats, after.batch_stats)))


@pytest.mark.parametrize("train_only", ["all", "bias", "batch_norm", "lora"])
@pytest.mark.parametrize("freeze_until", ["block_1", "all"])
def test_the_optimizer_holds_no_slots_for_frozen_leaves(freeze_until, train_only):
    _, state, plan = step_of(freeze_until, train_only=train_only, lora={"targets": ("all",)})
    trainable, _ = freeze.split(state.params, plan)
    slots = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    wanted = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    assert sum(leaf.size for leaf in slots) == 2 * wanted


def test_decay_spares_norms_and_biases_and_clipping_sees_trainable_leaves_alone():
    phase = default().finetune
    phase.update(optimizer="sgd", momentum=0.0, learning_rate=1.0, weight_decay=0.5, epochs=1)
    plan = freeze.plan(("low", "high"), "low")

    def tree(kernel, scale, frozen):
        leaves = {"kernel": jnp.full((2, 2), kernel), "scale": jnp.asarray(scale)}
        backbone = {"low": {"layer": {"kernel": jnp.full((2, 2), frozen)}}, "high": {"layer": leaves}}
        return {"backbone": backbone, "head": {"kernel": jnp.full((2, 1), kernel)}}

    params = tree(2.0, [2.0, 2.0], 100.0)
    tx = optim.make(phase, optim.make_schedule(phase, 1), plan, plan)
    updates, _ = tx.update(tree(0.0, [0.0, 0.0], 0.0), tx.init(params), params)
    assert jax.tree.map(lambda leaf: float(leaf.ravel()[0]), updates) == jax.tree.map(
        lambda leaf: float(leaf.ravel()[0]), tree(-1.0, [0.0, 0.0], 0.0)
    )
    phase.update(weight_decay=0.0, clip_norm=1.0)
    tx = optim.make(phase, optim.make_schedule(phase, 1), plan, plan)
    updates, _ = tx.update(tree(0.0, [3.0, 4.0], 1e6), tx.init(params), params)
    np.testing.assert_allclose(updates["backbone"]["high"]["layer"]["scale"], [-0.6, -0.8], rtol=1e-6)


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.fixture
def no_loops(monkeypatch):
    """The formulation for accelerators: XLA counts the body of a loop over images once, however often it runs."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("cut", range(6), ids=["None", *TINY().stages])
def test_a_step_costs_one_forward_pass_of_what_is_frozen_and_both_passes_of_what_is_not(cut, no_loops):
    model, variables = model_and_variables()
    stages = model.backbone.stages
    freeze_until = None if cut == 0 else "all" if cut == len(stages) else stages[cut - 1]
    step, state, _ = step_of(freeze_until, clip_norm=1.0)
    cached_step, _, _ = step_of(freeze_until, start=cut, clip_norm=1.0)
    frozen = functools.partial(run_frozen, model, start=0, stop=cut)
    batch = batch_of()
    stored = batch | {"inputs": jax.eval_shape(frozen, variables, batch["inputs"])}

    params = variables["params"]
    trainable = {"backbone": {name: params["backbone"][name] for name in stages[cut:]}, "head": params["head"]}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))

    def alone(params, opt_state, x):
        def loss(params):
            all_variables = {"params": params, "batch_stats": variables["batch_stats"]}
            keys = jax.random.split(jax.random.key(0), BATCH)
            logits, moved = model.apply(all_variables, x, cut, True, keys, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), moved

        grads, moved = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, moved, optax.tree.norm(grads)

    both = flops(alone, trainable, tx.init(trainable), stored["inputs"])
    forward = flops(frozen, variables, batch["inputs"]) if cut else 0
    rest = BATCH * 5_000  # smoothing, weights of classes, keys and metrics, which count beside a head alone
    assert flops(cached_step, state, stored) == pytest.approx(both, rel=0.02, abs=rest)
    assert flops(step, state, batch) == pytest.approx(forward + both, rel=0.02)


@pytest.mark.parametrize("cut", ["block_1", "all"])
def test_training_from_stored_activations_equals_training_from_images(cut):
    model, variables = model_and_variables()
    step, state, plan = step_of(cut)
    stored = jax.jit(lambda x: run_frozen(model, variables, x, 0, plan.cut))
    from_images, (_, norm) = jax.jit(step)(state, batch_of())
    cached_step, state, _ = step_of(cut, start=plan.cut)
    batch = batch_of() | {"inputs": stored(batch_of()["inputs"])}
    from_stored, (_, stored_norm) = jax.jit(cached_step)(state, batch)
    np.testing.assert_allclose(float(norm), float(stored_norm), rtol=1e-3)
    for a, b in zip(jax.tree.leaves(from_images.batch_stats), jax.tree.leaves(from_stored.batch_stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.optimized
@pytest.mark.parametrize("mixing", [{}, {"mixup": 1.0}], ids=str)
def test_masked_rows_change_nothing(mixing):
    step, state, _ = step_of("block_1", batch_norm_train=False, **mixing)
    batch = batch_of()
    other = batch | {"inputs": batch["inputs"].copy(), "label": batch["label"].copy()}
    other["inputs"][-1] = 255 - other["inputs"][-1]
    other["label"][-1] = (other["label"][-1] + 1) % 3
    first, second = (jax.jit(step)(state, b)[0] for b in (batch, other))
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("backbone", "given", "stage"),
    [("mobilenet_v2", "auto", "block_12"), ("vit_base_16", "auto", "layer_8"), ("vgg16", "auto", "block3")]
    + [("vgg16", given, given) for given in ("all", None, "block1")]
    + [("vgg16", given, None) for given in ("None", "none")],  # as of a command line
)
def test_auto_is_the_stage_before_the_last_quarter_of_those_of_the_backbone(backbone, given, stage):
    config = default()
    config.model.backbone = backbone
    config.finetune.update(epochs=1, freeze_until=given)
    assert zoo.resolved(config).finetune.freeze_until == stage


def test_an_unknown_stage_is_an_error_that_lists_the_stages():
    model, variables = model_and_variables()
    with pytest.raises(
        ConfigError,
        match=r"'block_99' is no stage; allowed: 'all', 'auto', None, Conv1, .*block_2, Conv_1",
    ):
        freeze.plan(model.backbone.stages, "block_99")
    with pytest.raises(ValueError, match="are not"):
        freeze.plan(model.backbone.stages[:-1], "all").labels(variables["params"])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_schedule_warms_up_and_ends_as_it_says(schedule):
    phase = default().probe
    phase.update(epochs=10, learning_rate=0.5, warmup_epochs=2.0, schedule=schedule)
    rate = optim.make_schedule(phase, steps_per_epoch=5)
    np.testing.assert_allclose([float(rate(i)) for i in range(10)], 0.05 * np.arange(1, 11), rtol=1e-5)
    assert float(rate(49)) == pytest.approx(
        0.5 if schedule == "constant" else 0.5 * 0.5 * (1 + np.cos(np.pi * 39 / 40)), abs=1e-6
    )


def test_losses_equal_the_formula():
    logits = np.asarray([[0.3, -1.2, 2.0], [1.0, 0.0, -1.0]], np.float32)
    label = np.asarray([2, 1], np.int32)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(cross_entropy(logits, label), -logp[[0, 1], label], rtol=1e-6)
    smooth = 0.7 * np.eye(3)[label] + 0.1
    np.testing.assert_allclose(cross_entropy(logits, label, 0.3), -(smooth * logp).sum(1), rtol=1e-6)
    one = np.asarray([[0.4], [-0.2]], np.float32)
    p = 1 / (1 + np.exp(-one[:, 0]))
    target = np.asarray([0.85, 0.15])
    np.testing.assert_allclose(
        cross_entropy(one, np.asarray([1, 0]), 0.3),
        -(target * np.log(p) + (1 - target) * np.log(1 - p)),
        rtol=1e-6,
    )
