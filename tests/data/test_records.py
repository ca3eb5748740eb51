"""A record of a TFDS set is read by its position: what TFDS itself reads there, and nothing of the rest."""

import functools
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import tensorflow_datasets as tfds
from conftest import IMAGES, NUM_SHARDS, write_records

from tltrain import config as config_lib
from tltrain.data import names, pipeline, records, sources
from tltrain.errors import DataError

COUNT = 103
SPLITS = ("train[:30%]+train[70:80]", "train[50%:60]", "train[-3:]")  # of parts of shards, and of one shard alone


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def form(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    write_records(folder, COUNT, request.param)
    return request.param, folder


def load(folder, splits=SPLITS):
    config = config_lib.default()
    config.data.update(source="tfds:pictures", data_dir=str(folder), splits=splits)
    return sources.load(config, IMAGES)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    monkeypatch.setenv("TLTRAIN_CACHE", str(tmp_path / "cache"))
    write_records(tmp_path, COUNT, "tfrecord")
    return tmp_path, sorted(tmp_path.rglob("*.tfrecord-*"))


@functools.cache
def of_tfds(folder, split):
    builder = tfds.builder("pictures", data_dir=folder)
    decoders = {"image": tfds.decode.SkipDecoding()}
    return [(each["image"], each["label"]) for each in builder.as_data_source(split, decoders=decoders)]


def test_examples_by_position_are_those_that_tfds_reads_in_order(form, tmp_path):
    name, folder = form
    wanted = folder
    if name == "tfrecord":  # which TFDS reads in order alone
        write_records(wanted := tmp_path, COUNT, "array_record")
    for split, expression in zip(load(folder).splits.values(), SPLITS, strict=True):
        expected = of_tfds(wanted, expression)
        order = np.random.default_rng(0).permutation(len(split.ids))
        with ThreadPoolExecutor(8) as pool:
            found = dict(zip(order.tolist(), pool.map(split.read, order), strict=True))
        assert [(found[i], split.labels[i]) for i in range(len(order))] == expected


def test_ids_are_shards_and_positions(form):
    split = load(form[1], ("train[20:40]", "train[:20]")).splits["train"]
    shards = {name: [int(i.partition("[")[2][:-1]) for i in split.ids if i.startswith(name)] for name in _files(split)}
    assert len(shards) == 2 and all(np.array_equal(np.diff(at), np.ones(len(at) - 1)) for at in shards.values())
    assert [split.ids[i] for i in range(-20, 20)] == 2 * list(split.ids) and len(split.ids) == 20
    with pytest.raises(IndexError):
        split.ids[20]


def _files(split):
    return dict.fromkeys(i.partition("[")[0] for i in split.ids)


def test_shards_are_as_many_as_were_asked_for(form):
    assert len(_files(load(form[1], ("train[:99%]", "train[99%:]")).splits["train"])) == NUM_SHARDS


@pytest.mark.parametrize("damage", ["a byte", "an end", "gone"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_damaged_file_is_one_error(copied, damage, when):
    folder, shards = copied
    whole, splits = shards[1].read_bytes(), ("train[:99%]", "train[99%:]")
    changed = {"a byte": whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], "an end": whole[:-9]}
    split = load(folder, splits).splits["train"] if when == "meanwhile" else None
    shards[1].write_bytes(changed[damage]) if damage in changed else shards[1].unlink()
    named = f"cannot read pictures/1.0.0; .*{shards[1].name}.*prepare the data set again"
    with pytest.raises(DataError, match=named):
        if split is None:
            load(folder, splits)
        else:
            rows = pipeline.rows(split.num_examples, 8)
            list(pipeline.from_examples(split, *rows, pipeline.Corrupt(split, 1.0, print)))


def test_another_file_of_other_records_is_noticed_by_its_lengths(copied):
    folder, shards = copied
    split = load(folder).splits["train"]
    shards[0].write_bytes(shards[1].read_bytes())
    with pytest.raises(DataError, match=r"record \d+ of .* is damaged"):
        for i in range(len(split.ids)):
            split.read(i)


def test_a_shard_that_lacks_records_is_refused(copied):
    folder, shards = copied
    end = records._offsets(shards[0])[-2]
    os.truncate(shards[0], end)
    with pytest.raises(DataError, match=r"has \d+ examples, its metadata says \d+; .*prepare the data set again"):
        load(folder)


def test_where_records_begin_is_found_once(copied, monkeypatch):
    folder, _ = copied
    first = load(folder)
    monkeypatch.setattr(records, "_offsets", lambda _: pytest.fail("found again"))
    second = load(folder)
    for role, split in first.splits.items():
        assert split.read(0) == second.splits[role].read(0) and split.fingerprint == second.splits[role].fingerprint
    for kept in (folder / "cache" / "records").iterdir():
        kept.write_bytes(kept.read_bytes()[:-1])
    monkeypatch.undo()
    monkeypatch.setenv("TLTRAIN_CACHE", str(folder / "cache"))
    assert load(folder).splits["train"].read(0) == first.splits["train"].read(0), "what is damaged is made again"


def test_a_split_is_not_held_in_memory(copied):
    folder, shards = copied
    of_data = sum(path.stat().st_size for path in shards)
    load(folder)  # what is imported on the way
    tracemalloc.start()
    split = load(folder, ("train[:99%]", "train[99%:]")).splits["train"]
    at_most = 0
    for i in range(len(split.ids)):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        split.read(i)
        at_most = max(at_most, tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert at_most < of_data / 10, "one example at a time"
    assert not {file.path for file in psutil.Process().open_files()} & set(map(str, shards))


def test_names_take_few_bytes_and_say_what_two_splits_share():
    made = [f"class/é{i}.jpg" for i in range(1000)] + ["\udcff.jpg"]
    kept = names.Strings(made)
    assert list(kept) == made and kept[-1] == made[-1] and len(kept) == 1001
    assert names.common(kept, names.Strings(["x", made[7]])) == made[7]
    assert names.common(kept, names.Strings(["x", "y"])) is None
    one, other = names.Places([names.Span("a", 0, 5), names.Span("b", 5, 5)]), names.Places([names.Span("b", 9, 5)])
    assert names.common(one, other) == names.common(other, one) == names.common(tuple(one), tuple(other)) == "b[9]"
    assert names.common(one, names.Places([names.Span("a", 5, 5), names.Span("b", 0, 5)])) is None
