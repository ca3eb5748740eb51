"""The doctor finds each planted fault, and none where there is none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images
from huggingface_hub import constants
from PIL import Image
from test_main import run as run_verb
from test_main import write_config
from test_vision import write as write_vision

from tltrain.checks import data, examination, images, machine, memory, phases, pixels, seconds, settings, weights
from tltrain.checks.case import Case
from tltrain.checks.finding import NotThereYetError
from tltrain.data.kinds.image_decoding import load_image
from tltrain.data.kinds.image_hash import near_pairs
from tltrain.errors import TerminatedError
from tltrain.experiment import train
from tltrain.models.image_backbone import NORMALIZED
from tltrain.weights import download


@pytest.fixture
def root(tiny, tmp_path):
    """A folder with 60 training and 150 val images, no two alike, which the tiny config is made to read."""
    root = tmp_path / "images"
    write_images(root / "train", {"light": 105, "dark": 105})
    for name in ("light", "dark"):
        (root / "val" / name).mkdir(parents=True)
        for path in sorted((root / "train" / name).iterdir())[30:]:
            path.rename(root / "val" / name / path.name)
    tiny.data.update(source=f"folder:{root}", splits=("train", "val"))
    return root


def case_of(config, tmp_path, limit=0, stop=lambda: False):
    case = Case(settings.repaired(config), tmp_path / "run", limit, stop)
    case.seconds["imports"] = 1.0
    return case


def state_of(folder):
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_a_clean_set_has_no_problem_and_nothing_is_changed(tiny, root, tmp_path):
    before = state_of(tmp_path)
    found = examination.examine(tiny, case_of(tiny, tmp_path))
    assert [finding for _, finding in found if finding.level == "problem"] == []
    assert {section for section, _ in found} == set(examination.SECTIONS)
    assert examination.exit_code(found) == 0 and examination.verdict(found).startswith("Nothing found")
    assert state_of(tmp_path) == before


def copies(root, count, quality=75, change=lambda image: image):
    """Writes `count` changed copies of light training images to val."""
    for path in sorted((root / "train" / "light").iterdir())[:count]:
        with Image.open(path) as image:
            change(image).save(root / "val" / "light" / f"copy_{path.name}", quality=quality)


def truncate(root, config):
    path = root / "train" / "light" / "light_003.jpg"
    path.write_bytes(path.read_bytes()[:300])


def scale_before_saving(root, config):
    for path in list(root.rglob("*.jpg")):
        with Image.open(path) as image:
            Image.fromarray((np.asarray(image) / 255).round().astype(np.uint8)).save(path.with_suffix(".png"))
        path.unlink()


def deepen(root, config):
    for path in list(root.rglob("*.jpg")):
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path.with_suffix(".png"))
        path.unlink()


def keep(folder, count):
    for path in sorted(folder.iterdir())[count:]:
        path.unlink()


def duplicate(root, count, to):
    for path in sorted((root / "train" / "light").iterdir())[:count]:
        shutil.copy(path, root / to / f"copy_{path.name}")


PLANTED = {
    "truncated": (truncate, data.check_files, "problem", 4, "1 of 60 images cannot be read: train/light/light_003.jpg"),
    "leak": (
        lambda r, c: duplicate(r, 3, "val/light"),
        data.check_duplicates,
        "problem",
        4,
        "the same images in two splits: 3",
    ),
    "one leak": (lambda r, c: duplicate(r, 1, "val/light"), data.check_duplicates, "advice", 0, "0.66 points"),
    "recompressed": (lambda r, c: copies(r, 3), data.check_duplicates, "problem", 4, "different files, of other"),
    "resized": (
        lambda r, c: copies(r, 3, 50, lambda image: image.resize((96, 80))),
        data.check_duplicates,
        "problem",
        4,
        "train train/light/light_000.jpg = val val/light/copy_light_000.jpg",
    ),
    "two labels": (lambda r, c: duplicate(r, 1, "train/dark"), data.check_duplicates, "problem", 4, "two labels: 1"),
    "twice": (lambda r, c: duplicate(r, 2, "train/light"), data.check_duplicates, "advice", 0, "in one split: 2"),
    "imbalance": (lambda r, c: keep(r / "train/dark", 5), data.check_counts, "advice", 0, "6.0 times"),
    "tiny val": (lambda r, c: keep(r / "val/dark", 5), data.check_counts, "advice", 0, "too few to choose"),
    "absent": (lambda r, c: keep(r / "val/dark", 0), data.check_counts, "advice", 0, "val has no images of dark"),
    "left out": (
        lambda r, c: (r / "train/light/a.txt").write_text("x"),
        data.check_left_out,
        "advice",
        0,
        "left out: 1 .txt file: train/light/a.txt",
    ),
    "scaled": (scale_before_saving, images.check_images, "problem", 4, "no image is brighter than 1 of 255"),
    "16 bit": (deepen, images.check_images, "advice", 0, "16 bits a pixel"),
    "small": (
        lambda r, c: c.data.update(image_size=(64, 64)),
        images.check_images,
        "advice",
        0,
        "210 of 210 are below",
    ),
    "/255": (lambda r, c: c.data.update(pixels="unit"), pixels.check_pixels, "problem", 2, "0.978"),
    "devices": (lambda r, c: c.update(batch_size=0), settings.check_keys, "problem", 2, "batch_size = 0, allowed"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault, tiny, root, tmp_path):
    plant, check, level, code, text = PLANTED[fault]
    plant(root, tiny)
    argument = tiny if check is settings.check_keys else case_of(tiny, tmp_path)
    found = [finding for finding in check(argument) if finding.level == level]
    assert [finding.exit_code for finding in found if text in finding.text] == [code], found


SETTINGS = {
    "fast fine-tune": ({"finetune.learning_rate": 1e-2}, "a tenth or less"),
    "augmented": ({"finetune.augment": True, "finetune.epochs": 3}, "features.augment_views = 3"),
    "slow statistics": ({"finetune.batch_norm": "train"}, "batch_norm_momentum = 0.9"),
    "small batch": ({"finetune.batch_norm": "train"}, "statistics of so few examples"),
    "no probe": ({"probe.epochs": 0, "model.weights": "x.h5"}, "Kumar et al. 2022"),
    "small images": ({"model.backbone": "mobilenet_v2"}, "less than half of the (224, 224)"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_allowed_values_that_experience_speaks_against_get_advice(case, tiny, tmp_path):
    changes, text = SETTINGS[case]
    assert not any(text in finding.text for finding in settings.check_recipe(case_of(quiet(tiny), tmp_path)))
    tiny.update_from_flattened_dict(changes)
    found = list(settings.check_recipe(case_of(tiny, tmp_path)))
    assert [finding.level for finding in found if text in finding.text] == ["advice"], found


VISION = {
    "positions": ({"data.image_size": (64, 96)}, "fine", "14 x 14 patches are resized to the 6 x 4"),
    "no statistics": ({"finetune.batch_norm": "train"}, "fine", "changes nothing: vit_tiny_16 has no BatchNorm"),
    "fast fine-tune": ({"finetune.learning_rate": 1e-2}, "advice", "a rate for a new head"),
}


@pytest.mark.parametrize("case", VISION)
def test_what_is_said_of_a_transformer_of_images_speaks_of_no_statistics(case, tiny, tmp_path):
    changes, level, text = VISION[case]
    tiny.update_from_flattened_dict({"model.backbone": "vit_tiny_16", "data.image_size": (224, 224)})
    tiny.finetune.freeze_until = "layer_10"
    assert not any(text in finding.text for finding in settings.check_recipe(case_of(tiny, tmp_path)))
    tiny.update_from_flattened_dict(changes)
    found = list(settings.check_recipe(case_of(tiny, tmp_path)))
    assert [finding.level for finding in found if text in finding.text] == [level]
    assert not any("statistics" in finding.text for finding in found)


def test_the_scaling_that_files_beside_the_weights_say_is_that_of_the_backbone(tiny, root, tmp_path):
    mean, std = NORMALIZED["torch"]
    weights = write_vision(tmp_path, "transformers", "vit", image_mean=mean, image_std=std)
    tiny.model.update(backbone="vit", weights=str(weights))
    tiny.data.update(pixels="unit", image_size=(64, 64))
    tiny.finetune.freeze_until = "layer_1"
    found = list(pixels.check_pixels(case_of(tiny, tmp_path)))
    assert any("vit was trained on 'torch'" in finding.text for finding in found if finding.level == "problem"), found
    assert any("has no BatchNorm" in finding.text for finding in found), found


def quiet(config):
    config = config.copy_and_resolve_references()
    config.data.image_size = (128, 128)
    return config


def test_one_error_hides_no_other_and_is_told_once(tiny, root, tmp_path):
    (tmp_path / "weights.h5").write_text("no HDF5")
    tiny.model.weights = str(tmp_path / "weights.h5")
    tiny.data.source = "folder:/nowhere"
    tiny.data.sorce = "x"
    tiny.finetune.clip_norm = -1.0
    found = examination.examine(tiny, case_of(tiny, tmp_path))
    problems = [(section, finding.exit_code) for section, finding in found if finding.level == "problem"]
    assert problems == [("Config", 2), ("Config", 2), ("Data", 4), ("Weights", 5)]
    assert sum("no folder at /nowhere" in finding.text for _, finding in found) == 1
    assert any(section == "Pixels" and "reason given under" in finding.text for section, finding in found)
    assert examination.exit_code(found) == 2


def test_bad_weights_leave_data_and_cost_to_be_looked_at(tiny, root, tmp_path):
    tiny.model.weights = str(tmp_path / "none.h5")
    found = examination.examine(tiny, case_of(tiny, tmp_path))
    assert [(section, f.exit_code) for section, f in found if f.level == "problem"] == [("Weights", 5)]
    assert any(section == "Cost" and f.text.startswith("about ") for section, f in found)


def test_weights_that_are_not_there_yet_are_announced_and_not_fetched(tiny, root, tmp_path, monkeypatch):
    monkeypatch.setenv("TLTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "_fetch", lambda *_: pytest.fail("fetched"))
    tiny.model.update(backbone="mobilenet_v2", weights="imagenet")
    with pytest.raises(NotThereYetError, match=r"would download 9.0 MiB from https://.*no_top.h5 to .*cache"):
        list(weights.check_weights(case_of(tiny, tmp_path)))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    tiny.model.weights = "hf:owner/name"
    with pytest.raises(NotThereYetError, match="a run would first fetch them from hf:owner/name"):
        list(weights.check_weights(case_of(tiny, tmp_path)))


def test_too_little_disk_is_found_for_the_record_and_for_the_features(tiny, root, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    case = case_of(tiny, tmp_path)
    found = [*machine.check_workdir(case), *memory.check_disk(case)]
    assert [f.exit_code for f in found if f.level == "problem"] == [6, 6, 6, 6]
    assert "would compute frozen stages anew" in found[2].text


def test_a_step_that_does_not_fit_the_memory_is_found_and_not_run(tiny, root, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "memory_of_device", lambda: 10**5)
    case = case_of(tiny, tmp_path)
    assert {(f.level, f.exit_code) for f in memory.check_memory(case)} == {("problem", 2)}
    assert ["not timed" in f.text for f in seconds.check_seconds(case)] == [True]


def test_an_idle_gpu_is_noticed(tiny, root, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path)
    (tmp_path / "0000:01:00.0").mkdir()
    assert any("JAX runs on its CPU: pip install" in f.text for f in machine.check_devices(case_of(tiny, tmp_path)))


def test_what_a_config_leaves_to_the_backbone_is_examined_as_a_run_has_it(tiny, root, tmp_path):
    tiny.finetune.freeze_until = "auto"
    train.run(tiny, tmp_path / "run")
    found = examination.examine(tiny, case_of(tiny, tmp_path))
    assert [finding for _, finding in found if finding.level == "problem"] == []
    assert any("finished" in finding.text for _, finding in found)


def test_a_workdir_of_another_run_is_found(tiny, tmp_path):
    tiny.finetune.epochs = 0
    train.run(tiny, tmp_path / "run")
    assert "finished" in next(machine.check_workdir(case_of(tiny, tmp_path))).text
    tiny.probe.epochs = 3
    finding = next(machine.check_workdir(case_of(tiny, tmp_path)))
    assert (finding.level, finding.exit_code) == ("problem", 2) and "probe.epochs: 2 -> 3" in finding.text


@pytest.mark.parametrize("views", [0, 2])
def test_the_stores_that_are_announced_are_those_that_a_run_makes(views, tiny, tmp_path):
    tiny.features.augment_views = views
    tiny.finetune.augment = views > 0
    announced = sum(due.num_bytes for due in phases.due_stores(case_of(tiny, tmp_path)))
    train.run(tiny, tmp_path / "run")
    made = [np.load(path, mmap_mode="r").nbytes for path in Path(tiny.features.dir).glob("*/inputs-*.npy")]
    assert len(made) == (5 if views else 4) and announced == sum(made)
    assert phases.due_stores(case_of(tiny, tmp_path)) == []


def test_it_ends_when_the_process_is_asked_to(tiny, root, tmp_path):
    with pytest.raises(TerminatedError, match="nothing was changed"):
        examination.examine(tiny, case_of(tiny, tmp_path, stop=lambda: True))


def test_a_limit_is_said_openly(tiny, root, tmp_path):
    found = list(data.check_files(case_of(tiny, tmp_path, limit=10)))
    assert found[0].text.startswith("only 20 of 210 images")


def test_near_pairs_are_those_of_a_plain_loop_over_all_pairs():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**63, (n, 4)).astype(np.uint64) for n in (600, 70))
    b[:5] = a[300:305] ^ np.uint64(0b1011)
    a[599], b[69] = 0, 7  # flat pictures, whose few bits say little
    found = [(i, j) for i, j, _ in near_pairs(a, b)]
    bits = [[sum(int(word).bit_count() for word in row) for row in hashes] for hashes in (a, b)]
    plain = [
        (i, j)
        for i in range(600)
        for j in range(70)
        if 8 * sum(int(x ^ y).bit_count() for x, y in zip(a[i], b[j], strict=True)) <= bits[0][i] + bits[1][j]
    ]
    assert found == plain == [(300 + k, k) for k in range(5)]


@pytest.fixture(scope="module")
def photos(shared_data):
    """128 cats and dogs, uint8, and the backbone with its real weights."""
    from tltrain.config import default

    config = default()
    config.data.data_dir = str(shared_data / "tfds")
    config.model.weights = str(shared_data / "weights" / "mobilenet_v2_1.0_no_top_keras_layout.h5")
    case = Case(config, Path("run"), 0, lambda: False)
    split = case.data.splits["train"]
    images = np.stack([load_image(split.read(12 * i), (96, 96), "stretch") for i in range(128)])
    return case, images


FAULTS = {
    "right": ("tf", lambda x: x, "fine", "distance"),
    "swapped": ("tf", lambda x: x[..., ::-1], "advice", "red and blue seem to be swapped"),
    "scaled": ("tf", lambda x: (x / 64).round().astype(np.uint8), "problem", "scaled already"),
    "12 bits": ("tf", lambda x: x >> 4, "problem", "scaled already"),
    "unit": ("unit", lambda x: x, "problem", "data.pixels = 'unit'"),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("fault", FAULTS)
def test_the_statistics_of_the_backbone_tell_right_pixels_from_wrong_ones(fault, photos):
    kind, spoil, level, text = FAULTS[fault]
    case, images = photos
    case = Case(case.config.copy_and_resolve_references(), case.workdir, 0, lambda: False)
    case.config.data.pixels = "backbone" if kind == "tf" else kind
    case.__dict__["data"], case.__dict__["sample"] = photos[0].data, spoil(images)
    found = list(pixels.check_pixels(case))
    assert [f.level for f in found if text in f.text] == [level], found


@pytest.mark.shared_data
def test_the_right_scaling_is_nearest_by_far(photos):
    case, images = photos
    found = pixels.distances(case.backbone, case.loaded.variables, images, "tf")
    ratios = {name: distance / found["as configured"] for name, distance in found.items()}
    assert ratios[pixels.SWAPPED] > 1.2 and ratios["scaled twice"] > 4
    assert ratios["'unit'"] > 3 and ratios["'caffe'"] > 100


def test_the_verb_says_all_this_as_json_and_in_its_exit_code(images, tmp_path):
    config = write_config(tmp_path, images, "config.data.pixels = 'unit'")
    done = run_verb(config, "--json", "--workdir", str(tmp_path / "run"), verb="doctor")
    assert (done.returncode, done.stderr) == (2, "")
    found = json.loads(done.stdout)
    assert [line["section"] for line in found if line["level"] == "problem"] == ["Pixels"]
    assert not (tmp_path / "run").exists()
