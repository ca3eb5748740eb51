"""Whatever lies in a folder, each of its files is an example of a run or is named as left out."""

import os
import random
import shutil
from pathlib import Path

import pytest
from conftest import IMAGES, bytes_each, write_images

from tltrain import config as config_lib
from tltrain.data import content, folder_source, names, sources
from tltrain.errors import DataError
from tltrain.training.setup import read_data

ROOTS = ([""], ["train", "val"], ["Training", "validation", "TEST"], ["train", "test"], ["train"], ["images"])
CLASSES = ("cat", "dog", "a b", "ünï", "100%", "[x]", "1", ".hidden", "__MACOSX")


def layout(root, seed, jpeg):
    """Makes a folder of some classes with images, other files, links, loops and folders within folders."""
    rng = random.Random(seed)
    names = [*rng.sample(CLASSES[:-2], 2), *rng.sample(CLASSES[-2:], rng.randint(0, 2))]
    for base in ROOTS[seed % len(ROOTS)]:
        for name in names:
            folder = root / base / name / rng.choice(("", "", "deeper", "train"))
            folder.mkdir(parents=True)
            for i in range(6):
                shutil.copy(jpeg, folder / f"image_{i}.jpg")
                shutil.copy(jpeg, folder / f"{i}{rng.choice(('.jpg', '.JPG', '', '.webp', '.txt', '.jpg.part'))}")
            extra = rng.randrange(6)
            if extra == 0:
                (folder / "notes.txt").write_text("no image")
            elif extra == 1:
                (folder / "gone.jpg").symlink_to(root / "nowhere.jpg")
            elif extra == 2:
                (folder / "loop").symlink_to(root, target_is_directory=True)
            elif extra == 3:
                os.mkfifo(folder / "pipe.jpg")
            elif extra == 4:
                (folder / "empty.jpg").touch()
            else:
                (folder / ".thumbs").mkdir()
                shutil.copy(jpeg, folder / ".thumbs" / "1.jpg")
        if rng.random() < 0.5:
            (root / base / "labels.csv").write_text("a,b")


@pytest.mark.parametrize("seed", range(30))
def test_every_file_is_an_example_or_is_named(seed, images, tmp_path):
    layout(tmp_path / "data", seed, next((images / "dark").iterdir()))
    config = config_lib.default()
    config.data.source = f"folder:{tmp_path / 'data'}"
    try:
        data = read_data(sources.resolved(config))
    except DataError as error:
        assert str(tmp_path / "data") in str(error) and "\n" not in str(error)
        return
    for i, label in (
        (i, label) for split in data.splits.values() for i, label in zip(split.ids, split.labels, strict=True)
    ):
        assert data.class_names[label] in i.split("/"), "a link to other classes takes nothing from them"
    examples = [i for split in data.splits.values() for i in split.ids]
    assert len(examples) == len(set(examples)), "no example is in two splits"
    named = [name.partition(" with ")[0] for names in data.left_out.values() for name in names]
    assert len(named) == len(set(named)) and not set(named) & set(examples)
    for at, _, files in os.walk(tmp_path / "data"):  # which follows no link
        for path in (Path(at) / file for file in files):
            name = path.relative_to(tmp_path / "data")
            above = {parent.as_posix() for parent in name.parents}
            known = name.as_posix() in {*examples, *named} or above & {folder.rstrip("/") for folder in named}
            assert known, f"nothing is said of {name}"


LAYOUTS = {  # folders with a class folder each -> splits of the default config, or the error
    "classes alone": (["a", "b"], ("train[:80%]", "train[80%:]")),
    "train alone": (["train/a", "train/b"], ("train[:80%]", "train[80%:]")),
    "train and val": (["train/a", "train/b", "val/a"], ("train", "val")),
    "three": (["Training/a", "Training/b", "validation/a", "TEST/b"], ("train", "val", "test")),
    "train and test": (["train/a", "train/b", "test/a"], ("train[:80%]", "train[80%:]", "test")),
    "a class named train": (["train", "bus"], ("train[:80%]", "train[80%:]")),
    "test and val alone": (["test/a", "val/a"], "names of splits, not classes"),
    "splits without classes": (["train", "val"], "names of splits, not classes"),
    "two of a role": (["train/a", "Training/a"], "are both a split 'train'"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_are_known_as_splits_or_as_classes(layout, tmp_path):
    folders, expected = LAYOUTS[layout]
    for folder in folders:
        write_images((tmp_path / folder).parent, {(tmp_path / folder).name: 10})
    config = config_lib.default()
    config.data.source = f"folder:{tmp_path}"
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read_data(sources.resolved(config))
        return
    config = sources.resolved(config)
    assert config.data.splits == expected
    data = read_data(config)
    assert sum(split.num_examples for split in data.splits.values()) == 10 * len(folders)


def test_a_folder_that_no_split_names_is_left_out_by_name(tmp_path):
    for folder in ("train", "val", "extra"):
        write_images(tmp_path / folder, {"a": 5, "b": 5})
    data = folder_source.load(tmp_path, ("train[:50%]", "train[50%:]"), IMAGES)
    assert data.left_out == {"folders beside the splits": ("extra/", "val/")}
    with pytest.raises(DataError, match="no folder for the split test; its splits are train, val"):
        folder_source.load(tmp_path, ("train", "test"), IMAGES)


def test_a_file_of_a_folder_takes_few_bytes_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # a thread has a buffer of its own
    monkeypatch.setattr(content, "_CHUNK", 64)
    monkeypatch.setattr(names, "_RUN", 64)
    for count in (100, 600):
        for i in range(count):
            path = tmp_path / f"{count}/{'ab'[i % 2]}/image_{i:07}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"%d" % i)
    splits = config_lib.default().data.splits
    assert bytes_each(lambda count: folder_source.load(tmp_path / f"{count}", splits, IMAGES), 100, 600) < 400
