"""A second kind of examples, rows of numbers through dense layers, does all that images do; and no room knows of it."""

import functools
import json
import re
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from test_train import assert_same_run, run, run_stopped

from tltrain import evaluate, export, predict, report
from tltrain.checks import examination, settings
from tltrain.checks.case import Case
from tltrain.data.kinds.kind import Argument, Kind
from tltrain.errors import ConfigError
from tltrain.experiment import sweeping
from tltrain.models import zoo
from tltrain.models.backbone import Backbone
from tltrain.runtime.process import Process


@dataclass(frozen=True)
class Numbers(Kind):
    """Text files of up to `width` numbers; a row is a dict: `values` float32 `[width]`, and their `count` int32."""

    width: int

    name, rate, shown_as, augments, keys = "rows", "rows/s", "text/plain", False, ()

    @classmethod
    def of(cls, config):
        return cls(8)

    def shapes(self):
        return {"values": jax.ShapeDtypeStruct((self.width,), np.float32), "count": jax.ShapeDtypeStruct((), np.int32)}

    def row(self, encoded, key=None):
        raw = self.values(encoded)
        return {"values": np.nan_to_num(raw), "count": np.isfinite(raw).sum(dtype=np.int32)}

    def facts(self, view):
        return {"width": self.width}

    def is_example(self, path, what):
        return path.suffix == ".txt"

    def look(self, encoded):
        return self.row(encoded)

    def show(self, encoded):
        return encoded

    def signature(self):
        return (Argument("numbers", "float32", ("batch", self.width)),)

    def raw(self, encoded):
        return (self.values(encoded),)

    def values(self, encoded):
        try:
            numbers = [float(word) for word in encoded.split()]
        except ValueError as error:
            raise OSError(str(error)) from error
        return np.asarray(numbers + [np.nan] * (self.width - len(numbers)), np.float32)

    def rows_of(self, xp, raw):
        return {"values": xp.nan_to_num(raw), "count": xp.sum(xp.isfinite(raw), -1).astype("int32")}


class Stage(nn.Module):
    """A dense layer beside the count."""

    @nn.compact
    def __call__(self, x, train):
        return x | {"values": nn.relu(nn.Dense(16, name="dense")(x["values"]))}


class Dense(Backbone):
    kind = Numbers

    def stage_factories(self):
        return dict.fromkeys(("low", "middle", "high"), Stage)

    def example(self):
        return jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[None], tree), Numbers(8).shapes())

    def pool(self, x):
        return x["values"].astype(jnp.float32) / x["count"][:, None]


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.BACKBONES, "dense", Dense)
    rng = np.random.default_rng(0)
    for name, mean in (("high", 1.0), ("low", -1.0)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(24):
            text = " ".join(f"{x:.3f}" for x in rng.normal(mean, 2, rng.integers(3, 9)))
            (tmp_path / "data" / name / f"{i}.txt").write_text(text)
    (tmp_path / "data" / "low" / "0.txt").write_text("1.0 <two> 3.0")
    config = tiny_config(tmp_path / "data", tmp_path / "features")
    config.data.update(image_size=None, max_corrupt=0.1)
    config.model.backbone = "dense"
    config.probe.freeze_until = "middle"
    config.finetune.freeze_until = "low"
    return config


def call(verb, *arguments):
    return verb.main(["tltrain", *map(str, arguments)])


def test_rows_of_numbers_are_trained_stored_and_resumed_bitwise(numbers, tmp_path):
    whole = run(numbers, tmp_path / "whole")
    assert whole["kind"]["name"] == "rows" and sum(whole["num_corrupt"].values()) == 1
    stored = {path.name for path in (tmp_path / "features").rglob("inputs*")}
    assert stored == {"inputs.values-00000.npy", "inputs.count-00000.npy"}
    numbers.features.dir = str(tmp_path / "others")
    run_stopped(numbers, tmp_path / "stopped", (1, 3, 9))
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.fixture
def finished(numbers, tmp_path, capsys):
    run(numbers, tmp_path / "run")
    said = capsys.readouterr().out
    assert "rows of 2 classes" in said and "rows/s" in said and "image" not in said
    return tmp_path / "run"


def test_the_verbs_take_rows_of_numbers(finished, tmp_path, capsys):
    assert call(predict, "--workdir", finished, tmp_path / "data" / "high", "--output", tmp_path / "out.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 24 and all(line["class"] in ("high", "low") for line in lines)
    assert call(evaluate, "--workdir", finished) == 0
    assert call(report, finished) == 0
    assert call(export, "--workdir", finished, "--format", "stablehlo") == 0
    said = capsys.readouterr()
    assert call(export, "--workdir", finished, "--format", "keras") == 2
    refused = f"keras is made of layers of Keras, of which there is no dense, that takes rows; in {finished}; choose"
    assert refused in capsys.readouterr().err
    assert "image" not in said.out + said.err
    page = (finished / "report.html").read_text()
    assert (
        not re.search("images|img/s|<img", re.split("</style>|<section id=.config", page)[1])
        and '<span class="text">' in page
    )


def test_a_sweep_of_probes_on_rows_of_numbers_is_one_of_runs(numbers, tmp_path):
    numbers.finetune.epochs = 0
    numbers.probe.freeze_until = "all"
    arms = [{"probe.learning_rate": rate} for rate in (1e-2, 1e-3)]
    members = sweeping.members(numbers, arms, 2, tmp_path / "sweep")
    assert sweeping.run(members, tmp_path / "sweep", Process()) == 0
    assert len((tmp_path / "sweep" / "table.csv").read_text().splitlines()) == 3


def test_the_doctor_looks_at_rows_of_numbers(numbers, tmp_path):
    case = functools.partial(Case, settings.repaired(numbers), tmp_path / "run", 0)
    found = examination.examine(numbers, case(lambda: False))
    texts = [finding.text for _, finding in found]
    assert not [text for text in texts if "image" in text], texts
    assert any("1 of 36 rows cannot be read: low/0.txt" in text or "1 of 12 rows cannot" in text for text in texts)
    assert [finding.text for _, finding in found if finding.level == "problem"] == []


@pytest.mark.parametrize("key", ["data.image_size", "probe.mixup", "features.augment_views"])
def test_keys_of_images_are_refused_by_name(numbers, tmp_path, key):
    value = {"data.image_size": (64, 64), "probe.mixup": 0.2, "features.augment_views": 2}[key]
    numbers.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=rf"{key} = .*, which takes rows; it is a key of images"):
        run(numbers, tmp_path / "run")
