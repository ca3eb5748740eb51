"""Strategies of fine-tuning do what their papers say."""

import jax
import pytest
from test_freeze import batch_of, flops, no_loops, step_of
from test_train import run

from tltrain import freeze

__all__ = ["no_loops"]  # a fixture

KINDS = {"bias": {"bias"}, "batch_norm": {"scale", "bias"}}


@pytest.mark.parametrize("train_only", KINDS)
def test_one_kind_of_leaf_trains_alone_and_the_head_whole(train_only):
    _, state, plan = step_of("expanded_conv", train_only=train_only)
    trainable, _ = freeze.split(state.params, plan.labels)
    names = {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(trainable)}
    assert {name for name in names if name.startswith("head")} == {"head.kernel", "head.bias"}
    layers = {("block_1", f"{part}_BN") for part in ("expand", "depthwise", "project")}
    layers |= {("block_2", f"{part}_BN") for part in ("expand", "depthwise", "project")} | {("Conv_1", "Conv_1_bn")}
    wanted = {f"backbone.{stage}.{layer}.{leaf}" for stage, layer in layers for leaf in KINDS[train_only]}
    assert {name for name in names if name.startswith("backbone")} == wanted


def test_gradients_of_kernels_that_do_not_train_are_not_computed(no_loops):
    cost = {}
    for train_only in ("all", "bias"):
        step, state, _ = step_of(None, train_only=train_only, batch_norm_train=False)
        cost[train_only] = flops(step, state, batch_of())
    assert cost["bias"] < 0.85 * cost["all"]


def test_the_report_counts_the_leaves_that_train(tiny, tmp_path, capsys):
    tiny.probe.epochs = 0
    tiny.finetune.train_only = "bias"
    phase = run(tiny, tmp_path / "run")["phases"]["finetune"]
    biases = 48 + 48 + 8 + 1280  # expand, depthwise and project of block_2, and Conv_1
    assert phase["trainable_parameters"] == biases + 1281
    assert f"{biases + 1281:,}" in capsys.readouterr().out
