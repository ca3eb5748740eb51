"""The whole loop on a tiny model: what a run leaves behind, and that stopping it anywhere changes nothing."""

import contextlib
import json
import re
import shutil
import time

import numpy as np
import pytest
from conftest import write_images
from PIL import Image

from tltrain.data import pipeline
from tltrain.errors import ConfigError, DataError, DivergedError, TerminatedError, WorkdirError
from tltrain.experiment import programs, report, train
from tltrain.models import zoo
from tltrain.runtime.checkpoint import Checkpoints, with_leaves
from tltrain.runtime.process import Process
from tltrain.runtime.workdir import Workdir
from tltrain.training.setup import read_data

TIMES = ("seconds", "share_waiting_for_input", "examples_per_second", "step_examples_per_second")
TIMES += ("files", "sha256")  # digests of what tells the time too


def run(config, path, **options):
    return train.run(config.copy_and_resolve_references(), path, Process(**options))


def run_stopped(config, path, polls):
    """The run, stopped when it has asked that many times whether it shall, for each of `polls`; then to its end."""
    num_stopped = 0
    for count in polls:
        left = iter([False] * count)
        try:
            run(config, path, asked=lambda left=left: next(left, True))
        except TerminatedError:
            num_stopped += 1
    assert num_stopped > 1, "it was stopped within its work"
    return run(config, path)


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def lines_of(path):
    return [without_times(json.loads(line)) for line in (path / "metrics.jsonl").read_text().splitlines()]


def states_of(path):
    """Bytes of every leaf of the newest and the best checkpoint of each phase."""
    found = {}
    for folder in sorted((path / "checkpoints").iterdir()):
        with contextlib.closing(Checkpoints(folder, 2, ())) as checkpoints:
            for step in (checkpoints.latest(), checkpoints.best()):
                leaves, _ = checkpoints.restore(step)
                found[folder.name, step] = {name: np.asarray(leaf).tobytes() for name, leaf in leaves.items()}
    return found


def assert_same_run(a, b):
    assert without_times(json.loads((a / "report.json").read_text())) == without_times(
        json.loads((b / "report.json").read_text())
    )
    assert lines_of(a) == lines_of(b)
    assert states_of(a) == states_of(b)


def test_a_run_leaves_a_whole_record(tiny, tmp_path):
    tiny.data.splits = ("train[:60%]", "train[60%:80%]", "train[80%:]")
    tiny.log.tensorboard = True
    tiny.log.every_steps = 2
    result = run(tiny, tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"config.json", "environment.json", "metrics.jsonl", "report.json", "class_names.json"}
    assert list((tmp_path / "run" / "tensorboard").rglob("events.*"))
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == json.loads(json.dumps(result))
    for phase, epochs in (("probe", 2), ("finetune", 1)):
        entry = result["phases"][phase]
        assert len(entry["history"]) == entry["epochs"] == epochs
        assert {"loss", "accuracy", "auc"} <= set(entry["best"]["val"])
        assert entry["examples_per_second"] > 0
    assert result["phases"]["probe"]["trainable_parameters"] == 1281
    for split, found in (("val", result["chosen"]["val"]), ("test", result["test"])):
        assert np.asarray(found["confusion"]).sum() == result["num_examples"][split]
    assert result["class_counts"]["train"] == {"dark": 11, "light": 18}
    assert {"data", "features", "compile", "train", "eval"} <= set(result["seconds"])
    assert result["features"]["examples_per_second"] > 0


@pytest.mark.parametrize("events", [True, False])
def test_what_is_said_of_the_record_is_there(events, tiny, tmp_path, capsys):
    tiny.log.tensorboard = events
    tiny.finetune.epochs = 0
    run(tiny, tmp_path / "run")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("The record of the run"))
    named = line.rstrip(".").rpartition(": ")[2].split(", ")
    assert all((tmp_path / "run" / name).exists() for name in named) and ("tensorboard/" in named) == events


def test_the_report_says_that_a_phase_waited_for_its_input(tiny, tmp_path, monkeypatch):
    def slow(*args):
        for batch in from_arrays(*args):
            time.sleep(0.05)
            yield batch

    from_arrays = pipeline.from_arrays
    monkeypatch.setattr(pipeline, "from_arrays", slow)
    probe = run(tiny, tmp_path / "run")["phases"]["probe"]
    assert probe["seconds"] * probe["share_waiting_for_input"] >= 0.05 * len(probe["history"])
    assert report.waits_for(probe).startswith("input")
    assert report.waits_for({"share_waiting_for_input": 0.01}) == "compute 99%"
    assert probe["examples_per_second"] < 8 / 0.05 < probe["step_examples_per_second"]
    given = f"input could give {probe['examples_per_second']:.0f} img/s, a step could take"
    assert report.speeds(probe, "img/s").startswith(given)


def test_the_report_says_what_a_step_could_take_where_steps_are_slow(tiny, tmp_path, monkeypatch, capsys):
    def slow(*args):
        def step(state, batch):
            time.sleep(0.05)
            return made(state, batch)

        made = train_program(*args)
        return step

    train_program = programs.train
    monkeypatch.setattr(programs, "train", slow)
    probe = run(tiny, tmp_path / "run")["phases"]["probe"]
    assert probe["examples_per_second"] <= probe["step_examples_per_second"] * 1.01 < 8 / 0.05 * 1.01
    assert " img/s or more, a step could take " in report.speeds(probe, "img/s")
    assert f"probe: {report.speeds(probe, 'img/s')}." in capsys.readouterr().out


def test_it_learns_what_can_be_learned(tiny, tmp_path):
    """Light against dark, through a network of random weights that is trained whole."""
    tiny.probe.epochs = 0
    tiny.finetune.update(epochs=8, freeze_until=None, learning_rate=3e-3, batch_norm="train")
    tiny.model.batch_norm_momentum = 0.5
    result = run(tiny, tmp_path / "run")
    assert result["chosen"]["val"]["accuracy"] == 1.0
    assert result["phases"]["finetune"]["last"]["train"]["accuracy"] == 1.0


@pytest.mark.optimized
def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny, tmp_path):
    first, again = run(tiny, tmp_path / "a"), run(tiny, tmp_path / "b")
    assert without_times(first) == without_times(again)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    tiny.seed = 1
    assert run(tiny, tmp_path / "c")["phases"]["probe"]["history"] != first["phases"]["probe"]["history"]


def test_each_epoch_takes_every_example_once_in_an_order_of_its_own(tiny, tmp_path, monkeypatch):
    def noted(take, readable, labels, index, mask):
        orders.append(index[mask].tolist())
        return from_arrays(take, readable, labels, index, mask)

    orders, from_arrays = [], pipeline.from_arrays
    monkeypatch.setattr(pipeline, "from_arrays", noted)
    tiny.finetune.epochs = 0
    tiny.probe.epochs = 3
    run(tiny, tmp_path / "run")
    of_epochs = [order for order in orders if order != sorted(order)]  # not of evaluations
    assert [sorted(order) for order in of_epochs] == [list(range(36))] * 3
    assert len(set(map(tuple, of_epochs))) == 3


def test_features_give_the_same_training_as_images(tiny, tmp_path):
    """To float32 rounding: the stored activations come from a program compiled apart."""
    cached = run(tiny, tmp_path / "cached")
    tiny.features.enabled = "off"
    plain = run(tiny, tmp_path / "plain")
    for phase in ("probe", "finetune"):
        for a, b in zip(cached["phases"][phase]["history"], plain["phases"][phase]["history"], strict=True):
            assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], rel=1e-4)
            assert a["val"]["loss"] == pytest.approx(b["val"]["loss"], rel=1e-4)


@pytest.mark.optimized
def test_a_run_stopped_again_and_again_is_bitwise_one_never_stopped(tiny, tmp_path):
    """36 training and 12 val images in batches of 8: polled 5 times an epoch and 2 in its evaluation, for 3 epochs."""
    tiny.log.every_steps = 2
    tiny.model.dropout = 0.3
    tiny.finetune.augment = True
    run(tiny, tmp_path / "whole")
    stopped_at = []
    for polls in (1, 2, 2, 1, 3, 4, 2, 7):  # the features are there already
        left = iter([False] * (polls - 1))
        with pytest.raises(TerminatedError, match="the same command") as error:
            run(tiny, tmp_path / "stopped", asked=lambda left=left: next(left, True))
        stopped_at.append(re.search(r"(\w+) step (\d+)", str(error.value)).groups())
    probe = [("probe", step) for step in ("1", "3", "5", "5", "6", "10")]
    assert stopped_at == [*probe, ("probe", "10"), ("finetune", "5")]
    run(tiny, tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.optimized
def test_a_stop_while_features_are_computed_loses_nothing(tiny, tmp_path):
    with pytest.raises(TerminatedError, match="same command"):
        run(tiny, tmp_path / "stopped", asked=lambda: True)
    run(tiny, tmp_path / "stopped")
    run(tiny, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def flip(path):
    """One bit in the middle of the largest file of a checkpoint."""
    data = max(path.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def exchange(a, b):
    middle = a.with_name("middle")
    a.rename(middle), b.rename(a), middle.rename(b)


DAMAGES = {
    "newest": lambda folder: flip(folder / "15"),
    "best": lambda folder: flip(folder / "5"),
    "all": lambda folder: [flip(folder / step) for step in ("5", "10", "15")],
    "manifest of the newest": lambda folder: (folder / "manifest_15.json").write_bytes(b"\xff{"),
    "steps exchanged with their manifests": lambda folder: [
        exchange(folder / name.format(5), folder / name.format(15)) for name in ("{}", "manifest_{}.json")
    ],
    "a save cut short": lambda folder: (folder / "manifest_15.json").unlink(),
}


@pytest.mark.optimized
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_never_used_nor_replaced_by_a_worse_one(tiny, tmp_path, capsys, damage):
    tiny.finetune.epochs = 0
    tiny.probe.update(epochs=3, learning_rate=1e-9)  # the first epoch stays the best
    run(tiny, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    (tmp_path / "damaged" / "report.json").unlink()
    folder = tmp_path / "damaged" / "checkpoints" / "probe"
    DAMAGES[damage](folder)
    run(tiny, tmp_path / "damaged")
    assert_same_run(tmp_path / "whole", tmp_path / "damaged")
    said = "probe: the checkpoint of its best epoch is damaged; steps after 0 are trained again"
    assert (said in capsys.readouterr().err) == (damage in ("best", "steps exchanged with their manifests"))
    assert not list(folder.glob("unfinished*"))


def test_a_finished_run_is_shown_again_and_not_done_again(tiny, tmp_path, capsys):
    first = run(tiny, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    page = tmp_path / "run" / "report.html"
    whole = page.read_bytes()
    page.unlink()  # as where a kill came before it was written
    assert without_times(run(tiny, tmp_path / "run")) == without_times(json.loads(json.dumps(first)))
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == before
    assert page.read_bytes() == whole
    assert "finished" in capsys.readouterr().out


def test_a_log_that_was_changed_is_told_and_changes_no_result(tiny, tmp_path, capsys):
    log = tmp_path / "run" / "metrics.jsonl"

    def change():
        log.write_text(log.read_text().replace('"accuracy": ', '"accuracy": 1', 1))
        return capsys.readouterr().err

    tiny.log.every_steps, tiny.features.enabled = 1, "off"
    whole, left = run(tiny, tmp_path / "whole"), iter([False] * 3)
    with pytest.raises(TerminatedError, match="probe step 4"):
        run(tiny, tmp_path / "run", asked=lambda: next(left, True))
    assert change() == ""
    assert without_times(run(tiny, tmp_path / "run")) == without_times(whole)
    assert f"{log} was changed or damaged: its lines of probe are not all those" in change()
    run(tiny, tmp_path / "run")
    assert f"{log} is not what the run wrote" in change()


def test_another_config_is_refused_with_the_differing_keys(tiny, tmp_path):
    run(tiny, tmp_path / "run")
    tiny.probe.learning_rate = 0.5
    with pytest.raises(ConfigError, match=r"probe.learning_rate: 0.001 -> 0.5"):
        run(tiny, tmp_path / "run")


def test_a_workdir_in_use_or_not_writable_is_refused(tiny, tmp_path):
    in_use = pytest.raises(WorkdirError, match=r"in use; .* by .* pid \d+")
    with contextlib.closing(Workdir(tmp_path / "run", tiny)), in_use:
        run(tiny, tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="cannot write the workdir"):
        run(tiny, tmp_path / "file" / "run")


def test_a_loss_that_is_not_finite_stops_the_run_and_no_such_state_is_saved(tiny, tmp_path):
    tiny.probe.epochs = 0
    tiny.finetune.update(epochs=3, freeze_until=None, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"finetune: (loss|gradient) at step \d is (nan|inf); .*lower the learning"):
        run(tiny, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints" / "finetune").glob("[0-9]*"))


def test_corrupt_images_are_reported_and_too_many_stop_the_run(tiny, images, tmp_path, capsys):
    root = shutil.copytree(images, tmp_path / "copy")
    tiny.data.update(source=f"folder:{root}", max_corrupt=0.1)
    broken = read_data(tiny).splits["train"].ids[0]
    (root / broken).write_bytes(b"broken")
    result = run(tiny, tmp_path / "run")
    assert result["num_corrupt"] == {"train": 1, "val": 0}
    assert np.sum(result["chosen"]["val"]["confusion"]) == result["num_examples"]["val"]
    assert capsys.readouterr().err.count(broken) == 1
    tiny.data.max_corrupt = 0.0
    with pytest.raises(DataError, match="cannot be read"):
        run(tiny, tmp_path / "strict")


VARIANTS = {
    "bfloat16": {"model.dtype": "bfloat16"},
    "softmax_for_two": {"model.head": "softmax"},
    "smoothing_and_weights": {"loss.label_smoothing": 0.1, "loss.class_weights": "auto"},
    "tutorial_pixels": {"data.pixels": "unit"},
    "best_by_loss": {"checkpoint.best": "loss"},
    "sgd": {"finetune.optimizer": "sgd", "finetune.clip_norm": 1.0, "finetune.schedule": "cosine"},
    "nothing_frozen": {"finetune.freeze_until": None, "finetune.batch_norm": "train"},
    "augmented": {"finetune.augment": True, "probe.augment": True},
    "pmap": {"parallel": "pmap"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_config_runs_to_its_report(tiny, tmp_path, variant):
    tiny.update_from_flattened_dict(VARIANTS[variant])
    tiny.probe.epochs = int("probe.augment" in VARIANTS[variant])
    result = run(tiny, tmp_path / "run")
    assert 0 <= result["chosen"]["val"]["accuracy"] <= 1
    assert np.isfinite(result["phases"]["finetune"]["last"]["val"]["loss"])


def test_three_classes_use_softmax(tiny, tmp_path):
    root = write_images(tmp_path / "three", {"a": 12, "b": 12, "c": 12})
    tiny.data.source = f"folder:{root}"
    result = run(tiny, tmp_path / "run")
    assert np.asarray(result["chosen"]["val"]["confusion"]).shape == (3, 3)
    assert "auc" not in result["chosen"]["val"]
    tiny.model.head = "sigmoid"
    with pytest.raises(ConfigError, match="the data has 3"):
        run(tiny, tmp_path / "sigmoid")


def test_unknown_names_fail_before_data_is_read(tiny, tmp_path):
    tiny.data.source = "folder:/nowhere"
    tiny.finetune.freeze_until = "block_99"
    with pytest.raises(ConfigError, match=r"finetune.freeze_until = 'block_99'"):
        run(tiny, tmp_path / "run")
    tiny.model.backbone = "mobilenet_v9"
    with pytest.raises(ConfigError, match=r"mobilenet_v2_0\.35"):
        run(tiny, tmp_path / "run")


def test_the_deterministic_evaluation_equals_a_plain_loop(tiny, tmp_path):
    """Accuracy and confusion of the report, recomputed image by image from the checkpoint."""
    tiny.finetune.epochs = 0
    result = run(tiny, tmp_path / "run")
    data = read_data(tiny)
    model = zoo.create(tiny, 1)
    with contextlib.closing(Checkpoints(tmp_path / "run" / "checkpoints" / "probe", 2, ())) as checkpoints:
        leaves, _ = checkpoints.restore(checkpoints.best())
    variables = with_leaves({name: zoo.shapes(model)[name] for name in ("params", "batch_stats")}, leaves)
    confusion = np.zeros((2, 2), int)
    for i, label in enumerate(data.splits["val"].labels):
        with Image.open(f"{tiny.data.source.removeprefix('folder:')}/{data.splits['val'].ids[i]}") as image:
            pixels = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
        logits = model.apply(variables, pixels[None])
        confusion[label, int(logits[0, 0] > 0)] += 1
    assert result["chosen"]["val"]["confusion"] == confusion.tolist()
