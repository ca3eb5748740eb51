"""Images come out right, splits never overlap, order is a pure function, corrupt files are counted."""

import dataclasses
import functools
import io
import os
import shutil

import numpy as np
import pytest
from conftest import IMAGES, write_images
from PIL import Image

from tltrain.config import default
from tltrain.data import pipeline, sources
from tltrain.data.kinds.image_augment import Augment
from tltrain.data.kinds.image_decoding import load_image
from tltrain.errors import ConfigError, DataError
from tltrain.experiment import report
from tltrain.training.tasks.classification import class_weights

AUGMENT = Augment(
    horizontal_flip=True, vertical_flip=True, min_area=0.5, rotation=20.0, color=0.3, randaugment=(2, 9), seed=1
)


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture():
    """Red above, blue below, a green left edge: any rotation, flip or swap of channels shows."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :, 0], pixels[20:, :, 2] = 200, 200
    pixels[:, :10] = (0, 200, 0)
    return Image.fromarray(pixels)


def upright(pixels):
    top, bottom, left = pixels[5, 30], pixels[35, 30], pixels[20, 3]
    return top[0] > 150 > top[2] + 60 and bottom[2] > 150 > bottom[0] + 60 and left[1] > 150


def rotated_by_exif(orientation, operation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture().transpose(operation), "JPEG", quality=95, exif=exif)


ORIENTED = {
    "jpeg": lambda: encode(picture(), "JPEG", quality=95),
    "png": lambda: encode(picture()),
    "palette": lambda: encode(picture().quantize(16)),
    "rgba": lambda: encode(picture().convert("RGBA")),
    "cmyk": lambda: encode(picture().convert("CMYK"), "JPEG", quality=95),
    "exif_3": lambda: rotated_by_exif(3, Image.Transpose.ROTATE_180),
    "exif_6": lambda: rotated_by_exif(6, Image.Transpose.ROTATE_90),
    "exif_8": lambda: rotated_by_exif(8, Image.Transpose.ROTATE_270),
    "exif_2": lambda: rotated_by_exif(2, Image.Transpose.FLIP_LEFT_RIGHT),
}


@pytest.mark.parametrize("kind", ORIENTED)
def test_every_kind_of_image_comes_out_upright_in_rgb(kind):
    pixels = load_image(ORIENTED[kind](), (40, 60), "stretch")
    assert (pixels.shape, pixels.dtype) == ((40, 60, 3), np.uint8)
    assert upright(pixels)


GREY = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
GREYS = {
    "8bit": Image.fromarray(GREY),
    "16bit": Image.fromarray(GREY.astype(np.uint16) * 257),
    "with_alpha": Image.merge("LA", (Image.fromarray(GREY), Image.new("L", (8, 8), 255))),
}


@pytest.mark.parametrize("kind", GREYS)
def test_grey_becomes_three_equal_channels(kind):
    pixels = load_image(encode(GREYS[kind]), (8, 8), "stretch")
    np.testing.assert_array_equal(pixels, np.repeat(GREY[..., None], 3, -1))


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    np.testing.assert_array_equal(load_image(encode(image), (8, 8), "stretch"), np.full((8, 8, 3), 255))


def test_crop_keeps_the_aspect_ratio_and_stretch_does_not():
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[:, 25:75] = 255
    encoded = encode(Image.fromarray(pixels))
    assert load_image(encoded, (50, 50), "crop").min() == 255
    assert load_image(encoded, (50, 50), "stretch")[:, :10].max() == 0


def test_augmentation_is_a_pure_function_of_seed_epoch_and_example():
    encoded = encode(picture())

    def augmented(key, seed=1):
        augment = Augment(**{**AUGMENT.__dict__, "seed": seed})
        return load_image(encoded, (40, 60), "stretch", augment, key).tobytes()

    assert augmented((3, 5)) == augmented((3, 5))
    assert len({augmented((3, 5)), augmented((4, 5)), augmented((3, 6)), augmented((3, 5), seed=2)}) == 4


def test_augmentation_at_zero_strength_changes_nothing():
    still = Augment(
        horizontal_flip=False, vertical_flip=False, min_area=1.0, rotation=0.0, color=0.0, randaugment=(0, 0), seed=1
    )
    plain = load_image(encode(picture()), (32, 32), "stretch")
    np.testing.assert_array_equal(load_image(encode(picture()), (32, 32), "stretch", still, (1, 2)), plain)


def config_of(source, splits):
    config = default()
    config.data.update(source=source, splits=splits)
    return config


def folder(root, splits=("train[:75%]", "train[75%:]")):
    return sources.load(config_of(f"folder:{root}", splits), IMAGES)


def test_a_folder_gives_classes_labels_and_stratified_splits(images):
    data = folder(images, ("train[:50%]", "train[50%:80%]", "train[80%:]"))
    assert data.class_names == ("dark", "light")
    assert [np.bincount(split.labels).tolist() for split in data.splits.values()] == [[9, 15], [5, 9], [4, 6]]
    ids = [i for split in data.splits.values() for i in split.ids]
    assert len(set(ids)) == len(ids) == 48
    train = data.splits["train"]
    assert [i.split("/")[0] for i in train.ids] == [data.class_names[label] for label in train.labels]


def test_images_are_known_by_content_and_what_is_left_out_is_named(images, tmp_path):
    root = shutil.copytree(images, tmp_path / "copy")
    source = root / "dark" / "dark_000.jpg"
    for name in ("dark/a.JPG", "dark/b", "dark/deep/c.jfif", "dark/.hidden.jpg", "beside.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, root / name)
    for hidden in (".ipynb_checkpoints", "__MACOSX"):
        (root / hidden).mkdir()
        shutil.copy(source, root / hidden / "x.jpg")
    (root / "__MACOSX" / "y.jpg").touch()
    (root / "dark" / "notes.txt").write_text("no image")
    (root / "light" / "gone.jpg").symlink_to(tmp_path / "nothing")
    (root / "light" / "again").symlink_to(root / "light")
    os.mkfifo(root / "light" / "pipe.jpg")
    data = folder(root)
    assert data.class_names == ("dark", "light")
    assert sum(split.num_examples for split in data.splits.values()) == 48 + 3
    assert data.left_out == {
        "folders whose name begins with . or __": (".ipynb_checkpoints/ with 1 file", "__MACOSX/ with 2 files"),
        "files beside the classes": ("beside.jpg",),
        "hidden files or folders": ("dark/.hidden.jpg",),
        "links to nothing": ("light/gone.jpg",),
        "pipes, sockets or devices": ("light/pipe.jpg",),
        "links to a folder that is there already": ("light/again/",),
        ".txt files": ("dark/notes.txt",),
    }
    told = report.left_out(data.left_out)
    for part in ("1 hidden file or folder (", "1 link to nothing (", "1 pipe, socket or device (", "1 .txt file ("):
        assert part in told
    assert "2 folders whose name begins with . or __ (.ipynb_checkpoints/ with 1 file, ...)" in told


def test_sub_folders_are_the_splits_where_they_exist(tmp_path):
    for split, counts in (("train", {"b": 4, "a": 3}), ("val", {"b": 2})):
        write_images(tmp_path / split, counts)
    data = folder(tmp_path, ("train", "val"))
    assert data.class_names == ("a", "b")
    assert data.splits["val"].labels.tolist() == [1, 1]


def make_extra_class(root):
    write_images(root / "train", {"a": 3, "b": 3})
    write_images(root / "val", {"a": 3, "c": 3})


BAD_FOLDERS = {
    "no folder": (lambda root: root.rmdir(), ("train", "val"), "no folder at"),
    "no classes": (lambda root: None, ("train[:80%]", "train[80%:]"), "at least two"),
    "class only in val": (make_extra_class, ("train", "val"), "train has not; c"),
    "empty class": (
        lambda root: (write_images(root, {"a": 5}), (root / "b").mkdir()),
        ("train[:80%]", "train[80%:]"),
        "no training example of b",
    ),
    "overlap": (lambda root: write_images(root, {"a": 9, "b": 9}), ("train[:80%]", "train[70%:]"), "overlap"),
    "no val": (lambda root: write_images(root, {"a": 9, "b": 9}), ("train", "val"), "no sub-folders train, val"),
    "bad split": (lambda root: write_images(root, {"a": 9, "b": 9}), ("train[:80", "train"), "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_refused_with_its_reason(case, tmp_path):
    make, splits, message = BAD_FOLDERS[case]
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        folder(tmp_path, splits)


def test_class_weights(images):
    data = folder(images)
    weights, train = functools.partial(class_weights, class_names=data.class_names), data.splits["train"]
    counts = np.bincount(train.labels)
    np.testing.assert_array_equal(weights(None, train=train), [1, 1])
    np.testing.assert_allclose(weights("auto", train=train) * counts, counts.sum() / 2, rtol=1e-6)
    np.testing.assert_array_equal(weights({"dark": 3.0}, train=train), [3, 1])
    with pytest.raises(ConfigError, match="drk"):
        weights({"drk": 3.0}, train=train)


@pytest.mark.parametrize("num_examples", [1, 7, 8, 9, 63, 64, 65])
def test_every_example_stands_in_one_unmasked_row(num_examples):
    for shuffle in (None, (0, 3)):
        index, mask = pipeline.rows(num_examples, 8, shuffle)
        assert index.shape == mask.shape == (pipeline.num_batches(num_examples, 8), 8)
        assert sorted(index[mask]) == list(range(num_examples))


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    first, again = (pipeline.rows(100, 8, (1, 2))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(pipeline.rows(100, 8, (1, 2), first=5)[0], first[5:])
    assert not np.array_equal(first, pipeline.rows(100, 8, (1, 3))[0])
    assert not np.array_equal(first, pipeline.rows(100, 8, (2, 2))[0])


def batches(split, corrupt, shuffle=(0, 0), first=0, augment=False):
    split = dataclasses.replace(split, kind=dataclasses.replace(IMAGES, augment=AUGMENT))
    index, mask = pipeline.rows(split.num_examples, 8, shuffle, first)
    return list(pipeline.from_examples(split, index, mask, corrupt, shuffle[1] if augment else None))


def test_batches_hold_the_images_of_their_indices_and_resume_in_mid_epoch(images):
    split = folder(images).splits["train"]
    corrupt = pipeline.Corrupt(split, 0.0, print)
    whole = batches(split, corrupt, augment=True)
    for ours, later in zip(whole[2:], batches(split, corrupt, first=2, augment=True), strict=True):
        assert all(np.array_equal(ours[key], later[key]) for key in ours)
    plain = batches(split, corrupt)
    assert sorted(np.concatenate([b["index"][b["mask"]] for b in plain])) == list(range(split.num_examples))
    for batch in plain:
        np.testing.assert_array_equal(batch["label"], split.labels[batch["index"]])
        expected = load_image(split.read(int(batch["index"][3])), (32, 32), "stretch")
        np.testing.assert_array_equal(batch["inputs"][3], expected)


def test_corrupt_images_are_masked_named_once_and_limited(images, tmp_path):
    root = shutil.copytree(images, tmp_path / "copy")
    data = folder(root)
    broken = data.splits["train"].ids[5]
    (root / broken).write_bytes(b"\xff\xd8 no image")
    split, said = folder(root).splits["train"], []
    tolerant = pipeline.Corrupt(split, 0.1, said.append)
    for epoch in range(2):
        read = batches(split, tolerant, (0, epoch))
        assert sum(b["mask"].sum() for b in read) == split.num_examples - 1
    assert len(said) == 1 and broken in said[0]
    tolerant.indices |= set(range(len(split.ids)))
    with pytest.raises(DataError, match="none of 36 images can be read"):
        pipeline.Corrupt.check(tolerant)
    with pytest.raises(DataError, match="1 of 36 images cannot be read"):
        batches(split, pipeline.Corrupt(split, 0.01, said.append))


@pytest.mark.shared_data
def test_tfds_splits_are_those_of_tfds(shared_data):
    config = config_of("tfds:cats_vs_dogs", ("train[:80%]", "train[80%:90%]", "train[90%:]"))
    config.data.data_dir = str(shared_data / "tfds")
    data = sources.load(config, IMAGES)
    assert data.class_names == ("cat", "dog")
    assert [split.num_examples for split in data.splits.values()] == [1600, 200, 200]
    assert len({i for split in data.splits.values() for i in split.ids}) == 2000
    assert load_image(data.splits["val"].read(0), (64, 64), "stretch").std() > 10


BAD_TFDS = {
    "unknown": ("tfds:cats_vs_dgs", ("train", "test"), "cannot prepare"),
    "overlap": ("tfds:cats_vs_dogs", ("train[:80%]", "train[79%:]"), r"overlap; both hold .*-00001\[1580\]"),
    "split": ("tfds:cats_vs_dogs", ("train[:80%]", "validation"), "cannot be read"),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("case", BAD_TFDS)
def test_a_bad_tfds_source_is_refused_with_its_reason(case, shared_data):
    source, splits, message = BAD_TFDS[case]
    config = config_of(source, splits)
    config.data.data_dir = str(shared_data / "tfds")
    with pytest.raises(DataError, match=message):
        sources.load(config, IMAGES)


@pytest.mark.shared_data
def test_damaged_records_of_tfds_are_one_error_and_not_as_many_unreadable_images(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("TLTRAIN_CACHE", str(tmp_path / "cache"))
    shutil.copytree(shared_data / "tfds", tmp_path / "tfds")
    (records,) = (tmp_path / "tfds").rglob("*.tfrecord-*")
    whole = records.read_bytes()
    config = config_of("tfds:cats_vs_dogs", ("train[:80%]", "train[80%:]"))
    config.data.data_dir = str(tmp_path / "tfds")
    sources.load(config, IMAGES)  # keeps the labels, so that records are read with the first image
    for damaged in (whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:], whole[: len(whole) // 2]):
        records.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot read cats_vs_dogs/4.0.1; .*prepare the data set again"):
            sources.load(config, IMAGES)
    records.write_bytes(whole)
    data = sources.load(config, IMAGES)
    records.write_bytes(damaged)
    with pytest.raises(DataError, match=r"cannot read cats_vs_dogs/4.0.1; .*prepare the data set again"):
        batches(data.splits["train"], pipeline.Corrupt(data.splits["train"], 1.0, print))
