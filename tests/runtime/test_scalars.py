"""Weights & Biases gets what TensorBoard gets, when it is wanted; else it is not even imported."""

import sys

import pytest
from test_train import run

from tltrain.errors import ConfigError


@pytest.fixture
def probe(tiny):
    tiny.probe.epochs = 1
    tiny.finetune.epochs = 0
    tiny.log.wandb_project = "frozen"
    return tiny


def logged(workdir):
    """The files of the runs of W&B below a workdir: protocol buffers, whose texts and numbers stand in them as JSON."""
    return {path: path.read_bytes() for path in workdir.rglob("*.wandb")}


def test_wandb_has_metrics_config_and_result_of_a_run(probe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    probe.log.every_steps = 2
    result = run(probe, tmp_path / "run")
    ((path, content),) = logged(tmp_path / "run").items()
    assert "W&B: " in capsys.readouterr().out
    chosen = result["chosen"]
    for value in (chosen["train"]["loss"], chosen["val"]["loss"], chosen["val"]["auc"]):
        assert str(value).encode() in content
    for name in ("probe/val/loss", "probe/step/grad_norm", "probe.learning_rate", "frozen", "chosen"):
        assert name.encode() in content
    assert path.stem == f"run-{(tmp_path / 'run' / 'wandb' / 'id').read_text()}"


def test_without_the_key_wandb_is_not_imported(probe, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    probe.log.wandb_project = ""
    run(probe, tmp_path / "run")
    assert "wandb" not in sys.modules and not logged(tmp_path)


def test_a_key_without_the_package_is_an_error_of_the_config(probe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"log.wandb_project = 'frozen' .*pip install 'tltrain\[wandb\]'"):
        run(probe, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
