"""The whole loop on a tiny BERT: what is stored, that stopping changes nothing, and every way to train."""

import json
import re

import numpy as np
import pytest
import small_text
from conftest import graded, write_tiny_bert
from devices import on_devices
from safetensors.numpy import save_file
from test_train import assert_same_run, run, run_stopped

from tltrain.cache import extraction
from tltrain.errors import ConfigError, WeightsError
from tltrain.experiment import sweeping, train
from tltrain.models import zoo
from tltrain.runtime.process import Process


def losses(result):
    return [
        (phase, entry[split]["loss"])
        for phase, found in result["phases"].items()
        for entry in found["history"]
        for split in ("train", "val")
    ]


def test_a_probe_and_a_finetune_of_texts_leave_a_whole_record(tiny_text, tmp_path, capsys):
    result = run(tiny_text, tmp_path / "run")
    assert result["kind"]["name"] == "texts" and result["num_examples"] == {"train": 30, "val": 10}
    assert [len(result["phases"][phase]["history"]) for phase in ("probe", "finetune")] == [2, 1]
    said = capsys.readouterr().out
    assert "texts of 2 classes (bad, good)" in said and "image" not in said
    stored = {path.name for path in (tmp_path / "features").rglob("*.npy")}
    assert {"inputs.hidden-00000.npy", "inputs-00000.npy"} <= stored


def test_a_second_run_computes_nothing_and_has_the_same_numbers(tiny_text, tmp_path, monkeypatch):
    first = run(tiny_text, tmp_path / "first")
    monkeypatch.setattr(extraction, "write", lambda *_: pytest.fail("computed again"))
    assert losses(run(tiny_text, tmp_path / "second")) == losses(first)


def test_features_that_are_stored_train_as_those_computed_each_time(tiny_text, tmp_path):
    stored = losses(run(tiny_text, tmp_path / "stored"))
    tiny_text.features.enabled = "off"
    for (phase, a), (_, b) in zip(stored, losses(run(tiny_text, tmp_path / "computed")), strict=True):
        assert a == pytest.approx(b, rel=1e-5), phase


@pytest.mark.optimized
@pytest.mark.parametrize("stored", ["auto", "off"])
def test_stopped_at_several_points_a_run_goes_on_bitwise(tiny_text, tmp_path, stored):
    tiny_text.features.enabled = stored
    tiny_text.checkpoint.every_steps = 2
    tiny_text.model.dropout = 0.2
    run(tiny_text, tmp_path / "whole")
    tiny_text.features.dir = str(tmp_path / "others")
    run_stopped(tiny_text, tmp_path / "stopped", (1, 3, 5, 9, 12))
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_two_devices_agree_with_one(tiny_text, tmp_path):
    """By SGD: Adam would turn the rounding of a gradient near zero into a step of full size."""
    tiny_text.finetune.update(optimizer="sgd", learning_rate=1e-2, clip_norm=1.0)
    one, *others = on_devices(tiny_text, tmp_path, 2)
    for two in others:
        for (phase, a), (_, b) in zip(losses({"phases": one}), losses({"phases": two}), strict=True):
            assert a == pytest.approx(b, rel=1e-6, abs=1e-6), phase


WAYS = {
    "layer_decay": {"finetune.layer_decay": 0.7, "finetune.freeze_until": None},
    "bias": {"finetune.train_only": "bias"},
    "lora": {"finetune.train_only": "lora", "finetune.layer_decay": 0.7, "finetune.ema": 0.5},
    "gradual_lora": {
        "finetune.train_only": "lora",
        "finetune.lora.targets": ("all",),
        "finetune.unfreeze_every_epochs": 1,
        "finetune.epochs": 3,
    },
    "gradual": {"finetune.unfreeze_every_epochs": 1, "finetune.epochs": 3},
    "strategies": {"finetune.ema": 0.5, "finetune.l2_sp": 0.1, "finetune.patience": 1, "loss.label_smoothing": 0.1},
    "ridge": {"probe.optimizer": "ridge", "probe.epochs": 1, "probe.weight_decay": 1.0},
    "rounded": {"model.dtype": "bfloat16", "features.dtype": "bfloat16"},
    "shots": {"data.shots": 4},
    "mean": {"model.pool": "mean", "finetune.freeze_until": "embeddings"},
    "cls": {"model.pool": "cls", "loss.class_weights": "auto"},
}


@pytest.mark.parametrize("way", graded(WAYS, ["bias", "lora", "gradual", "ridge", "mean"]))
def test_every_way_to_train_takes_texts(tiny_text, tmp_path, way):
    tiny_text.update_from_flattened_dict(WAYS[way])
    result = run(tiny_text, tmp_path / "run")
    assert np.isfinite([loss for _, loss in losses(result)]).all()
    biases = 16 * 4 + 24 + 16 + 2 * 16 + 16 + 16 + 1  # of a layer and its norms, of the pooler and of the head
    if way == "bias":
        assert result["phases"]["finetune"]["trainable_parameters"] <= biases


def test_words_that_tell_the_class_are_learned(tiny_text, tmp_path):
    tiny_text.finetune.update(freeze_until=None, epochs=12, learning_rate=3e-3, optimizer="adamw")
    tiny_text.model.pool = "mean"
    assert run(tiny_text, tmp_path / "run")["chosen"]["val"]["accuracy"] >= 0.9


def test_probes_of_texts_are_swept_together(tiny_text, tmp_path, monkeypatch):
    tiny_text.finetune.epochs = 0
    monkeypatch.setattr(train, "run", None)
    arms = [{"probe.learning_rate": rate} for rate in (1e-2, 1e-3)]
    members = sweeping.members(tiny_text, arms, 2, tmp_path / "sweep")
    assert sweeping.run(members, tmp_path / "sweep", Process()) == 0
    assert len((tmp_path / "sweep" / "table.csv").read_text().splitlines()) == 3


def test_pairs_of_texts_are_told_apart(tiny_text, tmp_path):
    table = tmp_path / "pairs.jsonl"
    texts = [text for text, _ in small_text.reviews(80)]
    lines = [{"a": a, "b": b, "label": i % 2} for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))]
    table.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    tiny_text.data.source = f"table:{table}"
    found = {}
    for columns in (("a", "b"), ("b", "a"), ("a",)):
        tiny_text.data.text = columns
        found[columns] = losses(run(tiny_text, tmp_path / "".join(columns)))
    assert len({str(values) for values in found.values()}) == 3


def test_texts_that_cannot_be_read_are_said_and_left_out(tiny_text, tmp_path, capsys):
    folder = tmp_path / "folder"
    for i, (text, label) in enumerate(small_text.reviews()):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{i:02}.txt").write_text(text)
    (folder / "bad" / "01.txt").write_bytes(b"caf\xe9")
    tiny_text.data.update(source=f"folder:{folder}", max_corrupt=0.1)
    result = run(tiny_text, tmp_path / "run")
    assert sum(result["num_corrupt"].values()) == 1
    assert np.isfinite([loss for _, loss in losses(result)]).all()
    assert "skipped bad/01.txt: not UTF-8 from byte 3 on" in capsys.readouterr().err


def test_how_many_texts_are_cut_and_how_many_tokens_that_loses_is_said_once(tiny_text, tmp_path, capsys):
    tiny_text.data.max_tokens = 8
    run(tiny_text, tmp_path / "run")
    said = capsys.readouterr().out
    for split, count in (("train", 30), ("val", 10)):
        (found,) = re.findall(rf"(\d+) of {count} texts of .* are longer than data.max_tokens: cut, (\d+) tokens", said)
        assert 0 < int(found[0]) < count and int(found[1]) > 0, split
    tiny_text.data.max_tokens = 32
    run(tiny_text, tmp_path / "uncut")
    assert "longer than data.max_tokens" not in capsys.readouterr().out


IMAGE_KEYS = {
    "data.image_size": (64, 64),
    "data.resize": "crop",
    "data.pixels": "unit",
    "data.augment.rotation": 5.0,
    "probe.mixup": 0.2,
    "finetune.cutmix": 1.0,
    "features.augment_views": 2,
}


@pytest.mark.parametrize("key", IMAGE_KEYS)
def test_keys_of_images_are_refused_by_name(tiny_text, tmp_path, key):
    tiny_text.update_from_flattened_dict({key: IMAGE_KEYS[key]})
    with pytest.raises(ConfigError, match=rf"{key} = .*, which takes texts; it is a key of images") as caught:
        run(tiny_text, tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["data.text", "data.max_tokens"])
def test_keys_of_texts_are_refused_by_images(tiny, tmp_path, key):
    tiny.update_from_flattened_dict({key: {"data.text": ("a", "b"), "data.max_tokens": 64}[key]})
    with pytest.raises(ConfigError, match=rf"{key} = .*, which takes images; it is a key of texts"):
        run(tiny, tmp_path / "run")


def without_place(config, folder):
    config.model.weights = "random"


def too_long(config, folder):
    config.data.max_tokens = 33


def unknown_stage(config, folder):
    config.finetune.freeze_until = "layer_9"


def two_texts_of_distilbert(config, folder):
    write_tiny_bert(folder, model_type="distilbert", dim=16, n_layers=2, n_heads=2, hidden_dim=24)
    config.data.text = ("text", "label")


def without_config(config, folder):
    (folder / "config.json").unlink()


def of_another_family(config, folder):
    write_tiny_bert(folder, model_type="gpt2")


def without_tokenizer(config, folder):
    (folder / "tokenizer.json").unlink()


def without_sizes(config, folder):
    (folder / "config.json").write_text("{")


def unknown_activation(config, folder):
    write_tiny_bert(folder, hidden_act="swish7")


def other_heads(config, folder):
    write_tiny_bert(folder, num_attention_heads=3)


def of_another_network(config, folder):
    save_file({"conv.weight": np.zeros((3, 3), np.float32)}, folder / "model.safetensors")
    config.model.weights = str(folder)


FAULTS = {
    without_place: (ConfigError, "model.weights = 'random', allowed with bert: a path, 'hf:OWNER/NAME', or 'random:'"),
    too_long: (ConfigError, "data.max_tokens = 33, allowed with bert: at most 32, for which it has positions"),
    unknown_stage: (ConfigError, "finetune.freeze_until = 'layer_9'"),
    two_texts_of_distilbert: (ConfigError, "data.text = .*, allowed with bert: one, since it has no token types"),
    without_config: (WeightsError, "no config.json beside the weights"),
    of_another_family: (WeightsError, "config.json is of a 'gpt2'; allowed with this model.backbone: bert, "),
    without_tokenizer: (WeightsError, "no tokenizer.json or vocab.txt beside the weights"),
    without_sizes: (WeightsError, "cannot read .*config.json"),
    unknown_activation: (WeightsError, "config.json has activation 'swish7'; allowed: gelu, gelu_new, gelu_pytorch"),
    other_heads: (WeightsError, "config.json divides 16 features among 3 heads"),
    of_another_network: (WeightsError, "is of another network; none of the .* arrays of the backbone is in it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_is_one_line(tiny_text, tmp_path, fault):
    fault(tiny_text, tmp_path / "texts" / "bert")
    error, message = FAULTS[fault]
    with pytest.raises(error, match=message) as caught:
        run(tiny_text, tmp_path / "run")
    assert "\n" not in str(caught.value)


def prepared(config):
    """The backbone of a config, and its random parameters."""
    model = zoo.create(zoo.resolved(config), 1)
    return model.backbone, zoo.init(model, 0, None)["params"]["backbone"]


def test_a_pooler_that_the_file_lacks_is_not_asked_for(tiny_text, tmp_path):
    """Then the first token is pooled as it is; of the file, what is there is used."""
    model, variables = prepared(tiny_text)
    arrays = {}
    for stage, layers in variables.items():
        for layer, leaves in layers.items():
            for leaf, array in leaves.items():
                name = f"{model.hub_name(stage, layer)}.{'bias' if leaf == 'bias' else 'weight'}"
                arrays[name] = np.ascontiguousarray(np.asarray(array).T if leaf == "kernel" else array)
    folder = tmp_path / "texts" / "bert"
    tiny_text.model.weights = str(folder)
    stages = {}
    for with_pooler in (True, False):
        kept = {name: array for name, array in arrays.items() if with_pooler or "pooler" not in name}
        save_file(kept, folder / "model.safetensors")
        stages[with_pooler] = prepared(tiny_text)[0].stages
    assert stages[True] == ("embeddings", "layer_0", "layer_1", "pooler") and stages[False] == stages[True][:3]


def test_a_tokenizer_of_more_words_than_the_weights_is_refused(tiny_text, tmp_path):
    write_tiny_bert(tmp_path / "texts" / "bert", vocab_size=20)
    with pytest.raises(WeightsError, match="and they have embeddings for 20; it is not theirs"):
        run(tiny_text, tmp_path / "run")
