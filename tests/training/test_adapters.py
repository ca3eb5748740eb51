"""LoRA does what its paper says, and what comes after it sees a model like any other."""

import re
import shutil

import jax
import numpy as np
import pytest
from test_freeze import batch_of, model_and_variables, same, step_of
from test_main import call, write_config
from test_strategies import leaves_of, updates_of
from test_train import assert_same_run, run, run_stopped

from tltrain.cache import space
from tltrain.data import packing
from tltrain.errors import ConfigError
from tltrain.experiment import finished, sweeping
from tltrain.exports import proven
from tltrain.exports.formats import FORMATS
from tltrain.models import adapters, zoo
from tltrain.runtime.process import Process
from tltrain.training import setup, steps

LORA = {"train_only": "lora", "lora": {"rank": 2, "alpha": 6.0, "targets": ("all",)}, "batch_norm_train": False}
SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.5}


@pytest.fixture
def lora_text(tiny_text):
    """A config that adapts the query and value of one layer of width 16, by rank 2."""
    tiny_text.probe.epochs = 0
    tiny_text.finetune.update(train_only="lora", epochs=2, learning_rate=1e-2)
    tiny_text.finetune.lora.rank = 2
    return tiny_text


def layers_of(params):
    return {
        (stage, layer): leaves
        for stage, layers in params["backbone"].items()
        for layer, leaves in layers.items()
        if set(adapters.FACTORS) <= set(leaves)
    }


def moved(params):
    """`params` in which the second factor of each layer is no longer zero."""
    rng = np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32) if path[-1].key == "lora_b" else leaf,
        params,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_layers_of_texts_give_what_the_merged_kernels_give(tiny_text, dtype):
    tiny_text.model.dtype = dtype
    model = zoo.create(zoo.resolved(tiny_text), 2)
    variables, lora = zoo.init(model, 0, None), adapters.Lora(2, 2.0, ("all",), seed=0)
    params = moved(adapters.with_factors(variables["params"], model.backbone.stages, lora))
    assert len(layers_of(params)) == 6 + 6 + 1  # of two layers and the pooler
    words = np.random.default_rng(0).integers(5, 40, 7).astype(np.int32)
    rows = [{"ids": words[:n], "types": np.zeros(n, np.int32)} for n in (7, 4)]
    packed = packing.pack(rows, np.ones(2, bool), packing.Shape(16, 2, 8), 1)
    with adapters.applied(lora):
        beside = model.apply({"params": params}, packed)
    merged, plain = (model.apply({"params": p}, packed) for p in (adapters.merged(params, lora), variables["params"]))
    tolerance = {"float32": 1e-5, "bfloat16": 0.05}[dtype] * np.abs(merged).max()
    assert np.abs(beside - merged).max() < tolerance < np.abs(beside - plain).max() / 4


def test_before_the_first_step_the_model_is_bitwise_the_pretrained_one():
    _, state, plan = step_of("block_1", **LORA)
    params = model_and_variables()[1]["params"]
    assert set(layers_of(state.params)) == {("block_2", "expand"), ("block_2", "project"), ("Conv_1", "Conv_1")}
    assert all(jax.tree.leaves(jax.tree.map(same, steps.variables(state, plan)["params"], params)))
    losses = []
    for options in (LORA, {"batch_norm_train": False}):
        step, state, _ = step_of("block_1", **options)
        losses.append(float(jax.jit(step)(state, batch_of())[1][0].loss))
    assert losses[0] == losses[1]


def test_the_first_factor_is_as_large_as_in_the_code_of_the_authors_and_follows_from_seed_and_place():
    params = model_and_variables()[1]["params"]
    drawn = [
        layers_of(adapters.with_factors(params, stages, adapters.Lora(64, 1.0, ("all",), seed)))
        for stages, seed in ((("block_1", "block_2"), 0), (("block_2",), 0), (("block_2",), 1))
    ]
    a = [found["block_2", "project"]["lora_a"] for found in drawn]
    assert same(a[0], a[1]) and not np.isclose(a[1], a[2]).any()
    assert not np.isclose(drawn[0]["block_1", "project"]["lora_a"], a[0]).any()
    assert a[0].shape == (48, 64) and a[0].dtype == np.float32
    assert np.abs(a[0]).max() == pytest.approx(48**-0.5, rel=0.01) and abs(a[0].mean()) < 0.005


def test_factors_move_by_the_formula():
    """For `W + s a b`, and G the gradient of that kernel: `s G b^T` of `a` and `s a^T G` of `b`; s = alpha / rank."""
    step, state, plan = step_of("block_2", **LORA, **SGD)
    layer = layers_of(state.params)["Conv_1", "Conv_1"]
    layer["lora_b"] = np.random.default_rng(0).normal(0, 0.1, layer["lora_b"].shape).astype(np.float32)
    after, _ = jax.jit(step)(state, batch_of())
    whole_step, whole, _ = step_of("block_2", **SGD, batch_norm_train=False)
    before = steps.variables(state, plan)["params"]
    moved, _ = jax.jit(whole_step)(whole.replace(params=before), batch_of())
    move = (moved.params["backbone"]["Conv_1"]["Conv_1"]["kernel"] - before["backbone"]["Conv_1"]["Conv_1"]["kernel"])[
        0, 0
    ]
    found = after.params["backbone"]["Conv_1"]["Conv_1"]
    for name, wanted in (("lora_a", 3 * move @ layer["lora_b"].T), ("lora_b", 3 * layer["lora_a"].T @ move)):
        error = np.abs(found[name] - layer[name] - wanted).max()
        assert error < 2e-4 * np.abs(wanted).max(), name


def test_no_matrix_of_the_shape_of_a_kernel_is_computed():
    """Neither the gradient of a kernel that stays nor the product of its factors."""
    made = {}
    for name, options in (("lora", LORA), ("all", {"batch_norm_train": False})):
        step, state, _ = step_of("block_1", **options)
        program = jax.jit(step).lower(state, batch_of()).as_text()
        shapes = re.findall(r"stablehlo.dot_general.*-> tensor<(\S+)xf32>", program)
        made[name] = {"8x48", "48x8"} & set(shapes)  # of expand and project
    assert made["all"] and not made["lora"]


def test_layer_decay_is_that_of_the_stage():
    plain, decayed = (updates_of("block_1", layer_decay=decay, **LORA, **SGD) for decay in (1.0, 0.5))
    for depth, place in enumerate((("Conv_1", "Conv_1"), ("block_2", "expand")), 1):
        a, b = (layers_of(tree)[place]["lora_b"] for tree in (plain, decayed))
        np.testing.assert_array_equal(b, a * np.float32(0.5**depth))
        assert np.abs(a).max() > 0


NAMES = {
    "attention.self.query": "query",
    "attention.q_lin": "query",
    "attention.attention.query": "query",
    "self_attn.q_proj": "query",
    "self_attn.v_proj": "value",
    "mlp.fc1": "fc1",
    "output.dense": "output.dense",
    "attention.output.dense": "output.dense",
    "expand_conv": "conv",
    "block.project": "all",
}


def test_a_target_is_a_name_or_the_end_of_one():
    leaves = {"kernel": np.zeros((3, 4))}
    for name, target in NAMES.items():
        assert adapters.targeted({name: leaves}, (target,)) == [name]
        assert adapters.targeted({f"{name}2": leaves}, (target,)) == ([f"{name}2"] if target == "all" else [])
    others = {"norm": {"scale": np.ones(3)}, "words": {"embedding": np.ones((3, 4))}}
    others["conv"] = {"kernel": np.zeros((3, 3, 4, 5))}
    assert adapters.targeted(others, ("all", "conv")) == []


def test_a_target_that_is_no_layer_is_one_line_that_lists_them(images, tmp_path, capsys, tiny_text):
    config = write_config(tmp_path, images)
    arguments = ("--config", config, "--workdir", tmp_path / "run", "--config.finetune.train_only=lora")
    code, line = call(capsys, *arguments, "--config.finetune.lora.targets=('expand','query')")
    assert code == 2 and "finetune.lora.targets has 'query', which is no layer after freeze_until" in line
    assert "those are: expand, project, Conv_1; name them" in line
    tiny_text.finetune.update(train_only="lora", lora={"targets": ("word_embeddings",)})
    with pytest.raises(
        ConfigError, match=r"has 'word_embeddings'.* attention.self.query, .*, output.dense, dense; name"
    ):
        sweeping.members(tiny_text, [{"finetune.lora.rank": 2}], 1, tmp_path)


def test_the_report_counts_factors_and_head(lora_text, tmp_path, capsys):
    phase = run(lora_text, tmp_path / "run")["phases"]["finetune"]
    factors, head = 2 * (16 * 2 + 2 * 16), 16 + 1
    assert phase["trainable_parameters"] == factors + head
    shapes = zoo.shapes(finished.load(tmp_path / "run").model)["params"]["backbone"]
    assert phase["frozen_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert re.search(rf"layer_1 .* {factors} ", capsys.readouterr().out)


def test_a_checkpoint_holds_factors_head_and_their_slots_alone(lora_text, tmp_path):
    run(lora_text, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "finetune" / "manifest_frozen.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "finetune" / "frozen")
    leaves = leaves_of(tmp_path / "run")
    layers = [f"backbone.layer_1.attention.self.{name}" for name in ("query", "value")]
    names = {f"{layer}.{factor}" for layer in layers for factor in adapters.FACTORS} | {"head.kernel", "head.bias"}
    assert {name for name in leaves if name.startswith("params.")} == {f"params.{name}" for name in names}
    large = [leaf.size for leaf in leaves.values() if leaf.ndim]
    assert sum(large) == 3 * 145  # and both moments of Adam
    config = sweeping.members(lora_text, [{}], 1, tmp_path)[0].config
    each, _ = space.of_checkpoints(setup.load(config, Process().clock), "finetune")
    assert each == sum(leaf.nbytes for leaf in leaves.values())


@pytest.mark.optimized
def test_kernels_stay_bitwise_and_the_model_read_back_has_the_product_in_them(lora_text, tmp_path):
    lora_text.finetune.ema = 0.5
    run(lora_text, tmp_path / "run")
    leaves, loaded = leaves_of(tmp_path / "run", which="best"), finished.load(tmp_path / "run")
    start = zoo.init(loaded.model, 0, None)["params"]["backbone"]
    query = "layer_1.attention.self.query"
    found = loaded.variables["params"]["backbone"]["layer_1"]["attention.self.query"]
    assert set(found) == {"kernel", "bias"}
    assert same(leaves[f"params.backbone.{query}.kernel"], start["layer_1"]["attention.self.query"]["kernel"])
    a, b = (leaves[f"average.backbone.{query}.{name}"] for name in adapters.FACTORS)
    product = 8.0 * a.astype(np.float64) @ b
    np.testing.assert_allclose(found["kernel"], leaves[f"params.backbone.{query}.kernel"] + product, atol=1e-6)
    assert np.abs(product).max() > 1e-3


@pytest.mark.optimized
def test_a_run_stopped_again_and_again_is_bitwise_one_never_stopped(lora_text, tmp_path):
    lora_text.checkpoint.every_steps = 2
    lora_text.finetune.update(epochs=3, optimizer="adamw", weight_decay=0.1, clip_norm=1.0, ema=0.9, layer_decay=0.7)
    run(lora_text, tmp_path / "whole")
    run_stopped(lora_text, tmp_path / "stopped", (2, 5, 7))
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_an_export_is_that_of_the_merged_model(lora_text, tmp_path, capfd):
    run(lora_text, tmp_path / "run")
    (tmp_path / "export").mkdir()
    proven.export(finished.load(tmp_path / "run"), ["stablehlo"], tmp_path / "export", Process())
    assert (tmp_path / "export" / FORMATS["stablehlo"].file).exists()
    assert "the same answer for 100.0 %" in capfd.readouterr().out


def test_runs_of_other_ranks_share_their_features(lora_text, tmp_path):
    arms = [{"finetune.lora.rank": rank, "finetune.lora.alpha": 2.0 * rank} for rank in (1, 4)]
    arms.append({"finetune.train_only": "all", "finetune.lora.rank": 8})
    members = sweeping.members(lora_text, arms, 1, tmp_path / "sweep")
    seen = []
    for member in members:
        sweeping.run([member], tmp_path / "sweep", Process())
        seen.append({path.name: path.stat().st_ino for path in (tmp_path / "features").iterdir()})
    assert members[0].arm == "rank=1,alpha=2.0" and seen[0] == seen[1] == seen[2]
