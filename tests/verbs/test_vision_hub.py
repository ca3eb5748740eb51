"""A transformer of images from the Hub, as a user meets it: fetched once, trained, and needed no more."""

import json
import shutil

from conftest import QUICKLY_COMPILED
from test_hub import COMMIT, REPO, serving
from test_main import ENVIRONMENT, ROOT, call, run
from test_vision import write

from tltrain import evaluate, predict


def probe(folder, name, images, **environment):
    """The report of a probe of `images` by the weights of the Hub, in a process of its own."""
    settings = {
        "data.source": f"folder:{images}",
        "model.backbone": "dinov2",
        "model.weights": f"hf:{REPO}@{COMMIT}",
        "probe.learning_rate": 0.1,
        "finetune.epochs": 0,
        "features.dir": f"{name}_features",
    }
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    environment = ENVIRONMENT | {"XLA_FLAGS": QUICKLY_COMPILED, "HF_HOME": str(folder / "hub")} | environment
    config = ROOT / "configs" / "cats_dogs.py"
    done = run(config, *arguments, "--workdir", name, cwd=folder, environment=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return json.loads((folder / name / "report.json").read_text())


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
