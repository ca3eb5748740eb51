"""Every key has a rule, every wrong value and name is reported, all at once."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from tltrain import config as config_lib
from tltrain.config import default, validate
from tltrain.errors import ConfigError

ROOT = Path(config_lib.__file__).parent


def test_the_default_is_valid_and_every_key_has_a_rule():
    validate(default())
    assert set(config_lib.flatten(default())) == set(config_lib.RULES)


WRONG = {
    "batch_size": 0,
    "seed": -1,
    "parallel": "ddp",
    "data.source": "cats_vs_dogs",
    "data.splits": ("train",),
    "data.image_size": (16, 224),
    "data.text": ("a", "b", "c"),
    "data.label": "",
    "data.augment.min_area": 0.0,
    "data.augment.randaugment": (0, 5),
    "model.dropout": 1.0,
    "model.dtype": "float16",
    "model.sha256": "0" * 63,
    "loss.class_weights": "balanced",
    "probe.learning_rate": float("nan"),
    "probe.optimizer": "lamb",
    "finetune.epochs": 2**63,
    "finetune.lora.rank": 0,
    "finetune.lora.targets": ("query", "query"),
    "checkpoint.every_steps": True,
    "features.enabled": "yes",
    "checkpoint.keep": 0,
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_reported_with_what_is_allowed(key):
    config = default()
    config.update_from_flattened_dict({key: WRONG[key]})
    with pytest.raises(ConfigError, match=f"{key} = .*, allowed: "):
        validate(config)


@pytest.mark.parametrize("key", ["loss.class_weights", "data.augment.randaugment", "data.splits", "parallel", "seed"])
def test_what_compares_in_a_way_of_its_own_is_no_value(key):
    for value in (np.zeros(3), (np.zeros(3), np.zeros(3)), np.float32(0.5), object()):
        made = config_lib.flatten(default()) | {key: value}
        (found,) = config_lib.problems(made)
        assert found.startswith(f"{key} = ") and "\n" not in found


def test_all_problems_are_reported_at_once():
    config = default()
    config.update_from_flattened_dict(WRONG)
    config.data.sorce = "x"
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert all(f"{key} = " in str(caught.value) for key in WRONG)
    assert "'data.sorce', did you mean 'data.source'?" in str(caught.value)
    assert f"{len(WRONG) + 1} problems" in str(caught.value)


@pytest.mark.parametrize("key", config_lib.RULES)
def test_every_misspelt_key_is_recognised(key):
    misspelt = key[:-2] + key[-1]
    message = config_lib.unknown(misspelt)
    assert message is not None and repr(misspelt) in message
    assert config_lib.unknown(key) is None


NEIGHBORS = {"probe.optimizer": "knn", "probe.epochs": 1}
CONFLICTS = {
    "nothing to do": ({"probe.epochs": 0}, "at least one"),
    "decay with adam": ({"probe.weight_decay": 0.1}, "adamw"),
    "long warm-up": ({"probe.warmup_epochs": 6.0}, "at most probe.epochs"),
    "cached and augmented": ({"features.enabled": "on", "probe.augment": True}, "one of them"),
    "mixed and cached": ({"features.enabled": "on", "probe.cutmix": 1.0}, "images are mixed"),
    "mixed and stored views": ({"features.augment_views": 2, "probe.mixup": 1.0}, "images are mixed"),
    "leaves of no stage": ({"probe.train_only": "bias"}, "where no stage trains"),
    "rates of no stage": ({"probe.layer_decay": 0.7}, r"probe.layer_decay = 0.7, allowed: 1.0 with freeze_until"),
    "factors of no use": ({"finetune.lora.rank": 4}, "allowed: 8 without finetune.train_only = 'lora'"),
    "pull of what stays": ({"finetune.train_only": "lora", "finetune.l2_sp": 0.1}, "by which kernels stay"),
    "nothing learned": ({"probe.learning_rate": 0.0}, "probe.learning_rate = 0.0, allowed: above 0"),
    "views of nothing": ({"features.augment_views": 2, "features.enabled": "off"}, "where nothing is stored"),
    "epochs of what is solved": (
        {"probe.optimizer": "logreg", "probe.epochs": 2},
        "'logreg', allowed: with probe.freeze",
    ),
    "dropout of a solution": (NEIGHBORS | {"model.dropout": 0.5}, "model.dropout = 0.5, allowed: 0.0 with knn alone"),
    "smoothing of least squares": (
        {"probe.optimizer": "ridge", "probe.epochs": 1, "probe.weight_decay": 1.0, "loss.label_smoothing": 0.1},
        "loss.label_smoothing = 0.1, allowed: 0.0 with ridge alone",
    ),
    "decay of neighbours": (NEIGHBORS | {"probe.weight_decay": 1.0}, "allowed: 0 with knn, which has no kernel"),
    "neighbours of none": ({"probe.neighbors": 5}, "probe.neighbors = 5, allowed: 20 without knn"),
    "fine-tuning neighbours": (NEIGHBORS | {"finetune.epochs": 1}, "which leaves no kernel to start from"),
    "neighbours at the end": ({"finetune.optimizer": "knn"}, "'knn', allowed: as probe.optimizer alone"),
    "loss of neighbours": (NEIGHBORS | {"loss.label_smoothing": 0.1}, "loss.label_smoothing = 0.1, allowed: 0.0"),
    "weights of neighbours": (NEIGHBORS | {"loss.class_weights": "auto"}, "loss.class_weights = 'auto', allowed: None"),
    "hash of nothing": ({"model.sha256": "0" * 64, "model.weights": "random"}, "no file is read"),
    "folder and data_dir": ({"data.source": "folder:x", "data.data_dir": "y"}, "with a folder"),
    "table and data_dir": ({"data.source": "table:x.csv", "data.data_dir": "y"}, "with a table"),
    "splits of no table": ({"data.source": "folder:x", "data.split": "y"}, "without a table"),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_keys_that_contradict_each_other_are_reported(case):
    changes, message = CONFLICTS[case]
    config = default()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_the_stored_config_equals_itself_and_names_differences():
    config = default()
    config.loss.class_weights = {"cat": 2.0}
    stored = json.loads(config_lib.to_json(config))
    assert config_lib.differences(config, stored) == []
    config.probe.epochs = 7
    assert config_lib.differences(config, stored) == ["probe.epochs: 5 -> 7"]


def test_a_key_that_is_newer_than_a_stored_config_has_its_default():
    stored = json.loads(config_lib.to_json(default()))
    del stored["model"]["sha256"]
    assert config_lib.from_dict(stored) == default()
    assert config_lib.differences(default(), stored) == []


def test_no_key_is_dead():
    """Each key is read somewhere in the library as an attribute, or its group is passed on whole."""
    names = set()
    for path in ROOT.rglob("*.py"):
        if path.name not in ("config.py", "conflicts.py"):
            names |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    keys = [key for key in config_lib.RULES if not key.startswith("data.augment.")]
    assert [key for key in keys if key.rpartition(".")[2] not in names] == []
    assert "augment" in names
