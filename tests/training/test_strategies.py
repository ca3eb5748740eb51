"""Strategies of fine-tuning do what their papers say."""

import contextlib
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_freeze import SMOOTH, batch_of, model_and_variables, no_loops, step_of
from test_train import assert_same_run, run

from tltrain.config import default
from tltrain.data.kinds.image_decoding import load_image
from tltrain.errors import ConfigError, TerminatedError
from tltrain.experiment import finished, loop
from tltrain.models import freeze, zoo
from tltrain.runtime.checkpoint import Checkpoints
from tltrain.training import optim, steps
from tltrain.training.setup import read_data

__all__ = ["no_loops"]  # a fixture

KINDS = {"bias": {"bias"}, "batch_norm": {"scale", "bias"}}


@pytest.mark.parametrize("train_only", KINDS)
def test_one_kind_of_leaf_trains_alone_and_the_head_whole(train_only):
    _, state, plan = step_of("expanded_conv", train_only=train_only)
    trainable, _ = freeze.split(state.params, plan)
    names = {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(trainable)}
    assert {name for name in names if name.startswith("head")} == {"head.kernel", "head.bias"}
    layers = {("block_1", f"{part}_BN") for part in ("expand", "depthwise", "project")}
    layers |= {("block_2", f"{part}_BN") for part in ("expand", "depthwise", "project")} | {("Conv_1", "Conv_1_bn")}
    wanted = {f"backbone.{stage}.{layer}.{leaf}" for stage, layer in layers for leaf in KINDS[train_only]}
    assert {name for name in names if name.startswith("backbone")} == wanted


def flops_written(step, *arguments):
    """Of the program before XLA simplifies it."""
    return jax.jit(step).lower(*arguments).cost_analysis()["flops"]


def test_gradients_of_kernels_that_do_not_train_are_not_computed(no_loops):
    cost = {}
    for train_only in ("all", "bias"):
        step, state, _ = step_of(None, train_only=train_only, batch_norm_train=False)
        cost[train_only] = flops_written(step, state, batch_of())
    assert cost["bias"] < 0.85 * cost["all"]


def leaves_of(workdir, phase="finetune", which="latest"):
    """The latest or the best state of a phase, by name."""
    with contextlib.closing(Checkpoints(workdir / "checkpoints" / phase, 2, ())) as checkpoints:
        return checkpoints.restore(getattr(checkpoints, which)())[0]


def updates_of(freeze_until, **options):
    """What the optimizer adds to each leaf in a first step."""
    step, state, _ = step_of(freeze_until, **options)
    tx, found = step.keywords["tx"], []

    def update(*arguments):
        updates, opt_state = tx.update(*arguments)
        found.append(updates)
        return updates, opt_state

    def updates(state, batch):
        step(state, batch, tx=tx._replace(update=update))
        return found.pop()

    return jax.tree.map(np.asarray, jax.jit(updates)(state, batch_of()))


def test_layer_decay_moves_each_stage_by_rate_times_decay_to_its_depth_times_gradient():
    options = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.5, "batch_norm_train": False}
    plain = updates_of("block_1", **options)
    decayed = updates_of("block_1", layer_decay=0.5, **options)
    for depth, stage in enumerate(("Conv_1", "block_2"), 1):
        for a, b in zip(*(jax.tree.leaves(tree["backbone"][stage]) for tree in (plain, decayed)), strict=True):
            np.testing.assert_array_equal(b, a * np.float32(0.5**depth), err_msg=stage)
    np.testing.assert_array_equal(decayed["head"]["kernel"], plain["head"]["kernel"])
    assert np.abs(plain["head"]["kernel"]).max() > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_l2_sp_pulls_the_backbone_to_where_the_phase_began_and_leaves_the_head_to_weight_decay(optimizer):
    """By hand where the data have no gradient: sgd moves by rate x alpha x distance, Adam by rate x its sign."""
    phase = default().finetune
    decay = 0.0 if optimizer == "adam" else 0.1
    phase.update(epochs=1, optimizer=optimizer, momentum=0.0, learning_rate=0.5, l2_sp=0.2, weight_decay=decay)
    start = {"backbone": {"s": {"l": {"kernel": jnp.ones((2, 2))}}}, "head": {"kernel": jnp.full((2, 1), 3.0)}}
    plan = freeze.plan(["s"], None)
    tx = optim.make(phase, optim.make_schedule(phase, 1), plan, plan)
    away = jax.tree.map(lambda p: p + 4, start)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, start), tx.init(start), away)
    pulled = -0.5 * (0.2 * 4 if optimizer == "sgd" else 1)
    np.testing.assert_allclose(updates["backbone"]["s"]["l"]["kernel"], np.full((2, 2), pulled), rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["kernel"], np.full((2, 1), -0.5 * decay * 7), rtol=1e-5)


def test_l2_sp_keeps_the_backbone_near_its_start_over_a_whole_run(tiny, tmp_path):
    tiny.probe.epochs = 0
    tiny.finetune.update(optimizer="sgd", momentum=0.0, learning_rate=0.3, epochs=3, freeze_until="block_2")
    distance = {}
    for l2_sp in (0.0, 3.0):
        tiny.finetune.l2_sp = l2_sp
        run(tiny, tmp_path / f"{l2_sp}")
        end = leaves_of(tmp_path / f"{l2_sp}")
        start = zoo.init(zoo.create(tiny, 1), tiny.seed, None)["params"]["backbone"]["Conv_1"]["Conv_1"]["kernel"]
        distance[l2_sp] = np.linalg.norm(end["params.backbone.Conv_1.Conv_1.kernel"] - start)
    assert 0 < distance[3.0] < 0.5 * distance[0.0]


CUTS = {
    "off": (0, "block_1", [3, 3, 3]),
    "one_an_epoch": (1, "expanded_conv", [5, 4, 3, 2, 2]),
    "one_in_two_epochs": (2, "block_1", [5, 5, 4, 4, 3]),
    "nothing_frozen": (1, None, [5, 4, 3, 2, 1, 0, 0]),
}


@pytest.mark.parametrize("case", CUTS)
def test_gradual_unfreezing_goes_from_the_head_down_to_freeze_until(case):
    every, freeze_until, cuts = CUTS[case]
    plans = [step_of(freeze_until, epoch=e, unfreeze_every_epochs=every)[2] for e in range(len(cuts))]
    params = model_and_variables()[1]["params"]
    assert [plan.cut for plan in plans] == cuts
    for plan in plans:
        labels = plan.labels(params)
        of_stages = {name: set(jax.tree.leaves(tree)) for name, tree in labels["backbone"].items()}
        wanted = {name: {"frozen" if i < plan.cut else "trainable"} for i, name in enumerate(plan.stages)}
        assert of_stages == wanted
        assert set(jax.tree.leaves(labels["head"])) == {"trainable"}


@pytest.mark.optimized
def test_a_stage_its_statistics_and_its_optimizer_stay_bitwise_until_its_epoch(tiny, tmp_path):
    tiny.probe.epochs = 0
    tiny.checkpoint.keep = 9
    tiny.finetune.update(epochs=4, unfreeze_every_epochs=1, batch_norm="train", optimizer="adamw", weight_decay=0.1)
    run(tiny, tmp_path / "run")
    with contextlib.closing(Checkpoints(tmp_path / "run" / "checkpoints" / "finetune", 9, ())) as checkpoints:
        states = [checkpoints.restore(step)[0] for step in (5, 10, 15, 20)]
    for first, stage in ((1, "Conv_1"), (2, "block_2")):
        mine = [name for name in states[0] if f".{stage}." in name]
        assert any("opt_state" in name and name.endswith("count") for name in mine)
        for epoch in range(1, 4):
            moved = {name for name in mine if not np.array_equal(states[epoch][name], states[epoch - 1][name])}
            assert moved == (set(mine) if epoch >= first else set()), (stage, epoch)
        assert [int(s[name]) for s in states for name in mine if name.endswith("count")] == [
            5 * max(epoch - first + 1, 0) for epoch in range(4)
        ]


def test_an_epoch_computes_no_gradient_of_stages_that_are_frozen_so_far(no_loops):
    cost = []
    for epoch in range(3):
        step, state, _ = step_of("block_1", epoch=epoch, unfreeze_every_epochs=1)
        cost.append(flops_written(step, state, batch_of()))
    whole, state, _ = step_of("block_1")
    assert cost[0] < cost[1] < cost[2] == pytest.approx(flops_written(whole, state, batch_of()), rel=0.01)


def test_a_phase_too_short_to_unfreeze_all_is_refused(tiny, tmp_path):
    tiny.finetune.update(epochs=2, unfreeze_every_epochs=1)
    with pytest.raises(ConfigError, match=r"finetune.epochs = 2 ends before all 2 stages .* allowed: from 3 on"):
        run(tiny, tmp_path / "run")


def test_the_average_is_the_one_computed_by_hand_and_training_goes_on_without_it():
    step, state, plan = step_of("block_2", ema=0.7, optimizer="sgd")
    plain_step, plain, _ = step_of("block_2", optimizer="sgd")
    step, plain_step, expected = jax.jit(step), jax.jit(plain_step), state.params
    for i in range(3):
        state, _ = step(state, batch_of(i))
        plain, _ = plain_step(plain, batch_of(i))
        expected = jax.tree.map(lambda a, p: 0.7 * a + 0.3 * p, expected, plain.params)
    model = steps.variables(state, plan)
    for path, leaf in jax.tree.leaves_with_path(expected):
        found = functools.reduce(lambda tree, key: tree[key.key], path, model["params"])
        np.testing.assert_allclose(found, leaf, rtol=1e-5, atol=1e-7)
    for found, leaf in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(found, leaf, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(model["params"]["head"]["kernel"], state.params["head"]["kernel"])


def test_the_averaged_model_is_evaluated_ranked_handed_on_and_read_back(tiny, tmp_path):
    tiny.probe.update(ema=0.9, learning_rate=1e-2)
    tiny.finetune.update(ema=0.5, learning_rate=1e-3)
    result = run(tiny, tmp_path / "run")
    probe, finetune = (leaves_of(tmp_path / "run", phase, "best") for phase in ("probe", "finetune"))
    assert not np.array_equal(probe["average.head.kernel"], probe["params.head.kernel"])
    loaded = finished.load(tmp_path / "run")
    chosen = {"probe": probe, "finetune": finetune}[loaded.phase]
    np.testing.assert_array_equal(loaded.variables["params"]["head"]["kernel"], chosen["average.head.kernel"])
    val = read_data(tiny).splits["val"]
    pixels = np.stack([load_image(val.read(i), (32, 32), "stretch") for i in range(val.num_examples)])
    predicted = np.asarray(jax.jit(loaded.model.apply)(loaded.variables, pixels))[:, 0] > 0
    confusion = [[int(((val.labels == a) & (predicted == b)).sum()) for b in (0, 1)] for a in (0, 1)]
    assert result["chosen"]["val"]["confusion"] == confusion


def patient(config):
    """Val accuracy stands still at this rate, so no epoch is better than the first."""
    config.probe.update(epochs=6, patience=2, learning_rate=1e-9)
    config.finetune.epochs = 0
    return config


def test_a_phase_ends_after_patience_epochs_without_a_better_one_and_a_resumed_one_keeps_count(tiny, tmp_path, capsys):
    result = run(patient(tiny), tmp_path / "whole")
    probe = result["phases"]["probe"]
    assert [probe["best"]["epoch"], probe["last"]["epoch"], probe["epochs"]] == [1, 3, 6]
    assert probe["stopped_early"]
    assert "probe stopped early, after epoch 3 of 6: none since 1 was better." in capsys.readouterr().out
    for polls in (9, 8, 0):  # 7 an epoch, with its evaluation
        left = iter([False] * polls)
        with pytest.raises(TerminatedError):
            run(tiny, tmp_path / "stopped", asked=lambda left=left: next(left, True))
    run(tiny, tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


HISTORIES = {
    "none": ([], False),
    "first": ([0.5], False),
    "equal is not better": ([0.5, 0.5, 0.5], True),
    "better in time": ([0.5, 0.4, 0.6], False),
    "one short": ([0.5, 0.6, 0.6], False),
    "worse": ([0.5, 0.6, 0.1, 0.59], True),
    "all epochs": ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], True),
}


@pytest.mark.parametrize("case", HISTORIES)
@pytest.mark.parametrize("best", ["accuracy", "loss"])
def test_patience_counts_by_the_score_that_ranks_checkpoints(case, best):
    scores, ended = HISTORIES[case]
    config = patient(default())
    config.checkpoint.best = best
    other = {"accuracy": "loss", "loss": "accuracy"}[best]
    sign = 1 if best == "accuracy" else -1
    history = [{"val": {best: sign * score, other: 0.0}} for score in scores]
    assert loop.is_over(SimpleNamespace(config=config, task=SMOOTH), "probe", history) == ended


def test_finetune_starts_from_the_best_head_of_the_probe_and_the_pretrained_backbone(tiny, tmp_path):
    """LP-FT (Kumar et al. 2022, arXiv 2202.10054), seen where fine-tuning moves nothing."""
    tiny.probe.update(epochs=3, learning_rate=1e-9)
    tiny.finetune.update(learning_rate=1e-30, optimizer="sgd")  # of a zero, this moves the 30th digit
    result = run(tiny, tmp_path / "run")
    assert result["phases"]["probe"]["best"]["epoch"] == 1
    best, last = (leaves_of(tmp_path / "run", "probe", which) for which in ("best", "latest"))
    tuned = leaves_of(tmp_path / "run")
    np.testing.assert_allclose(tuned["params.head.kernel"], best["params.head.kernel"], rtol=0, atol=1e-20)
    assert not np.array_equal(best["params.head.kernel"], last["params.head.kernel"])
    pretrained = zoo.init(zoo.create(tiny, 1), tiny.seed, None)["params"]["backbone"]
    for path, leaf in jax.tree.leaves_with_path(pretrained):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        np.testing.assert_allclose(tuned[f"params.backbone.{name}"], leaf, rtol=0, atol=1e-20)


@pytest.mark.optimized
def test_a_run_of_all_strategies_stopped_again_and_again_is_bitwise_one_never_stopped(tiny, tmp_path):
    tiny.probe.epochs = 0
    tiny.data.augment.randaugment = (2, 9)
    tiny.finetune.update(epochs=3, unfreeze_every_epochs=1, layer_decay=0.7, l2_sp=0.1, ema=0.9, patience=5)
    tiny.finetune.update(mixup=0.4, cutmix=1.0, augment=True, learning_rate=1e-3, batch_norm="train")
    run(tiny, tmp_path / "whole")
    for polls in (2, 8, 3):  # 7 an epoch, with its evaluation
        left = iter([False] * polls)
        with pytest.raises(TerminatedError):
            run(tiny, tmp_path / "stopped", asked=lambda left=left: next(left, True))
    run(tiny, tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_the_report_counts_the_leaves_that_train(tiny, tmp_path, capsys):
    tiny.probe.epochs = 0
    tiny.finetune.train_only = "bias"
    phase = run(tiny, tmp_path / "run")["phases"]["finetune"]
    biases = 48 + 48 + 8 + 1280  # expand, depthwise and project of block_2, and Conv_1
    assert phase["trainable_parameters"] == biases + 1281
    assert f"{biases + 1281:,}" in capsys.readouterr().out


def test_stages_computed_again_give_the_same_gradient_and_keep_less_for_it():
    model, variables = model_and_variables()
    again = model.clone(backbone=model.backbone.clone(remat=True))
    params, images = variables["params"], batch_of()["inputs"]

    def of(model):
        def loss(params):
            return model.apply(variables | {"params": params}, images).sum()

        kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)  # what a backward pass is given
        return jax.jit(jax.grad(loss))(params), sum(leaf.size for leaf in jax.tree.leaves(kept))

    (plain, much), (same, little) = of(model), of(again)
    assert little < 0.5 * much
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())


def test_remat_is_a_key_of_a_phase(tiny, tmp_path):
    tiny.probe.epochs = 0
    runs = {}
    for remat in (False, True):
        tiny.finetune.remat = remat
        runs[remat] = run(tiny, tmp_path / str(remat))["chosen"]["val"]["loss"]
    assert runs[False] == pytest.approx(runs[True], rel=1e-3)
