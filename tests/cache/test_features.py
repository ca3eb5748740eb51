"""The feature cache: what is stored is what would be computed, once, and never anything else."""

import collections
import contextlib
import functools
import os
import runpy
import shutil
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, graded
from test_main import ENVIRONMENT, write_config
from test_train import run

from tltrain import features as verb
from tltrain.cache import extraction, features, forward, inputs, store
from tltrain.config import default
from tltrain.data import pipeline, records
from tltrain.data.kinds.image_decoding import load_image
from tltrain.data.tensorflow import import_tensorflow
from tltrain.errors import TerminatedError, WorkdirError
from tltrain.models import zoo
from tltrain.models.classifier import run_frozen
from tltrain.models.nasnet import NASNet
from tltrain.runtime.process import Clock
from tltrain.training.setup import load, read_data


def stores(tmp_path):
    return sorted(store.folders(tmp_path / "features"))


def losses(result, phase="finetune"):
    return [entry[split]["loss"] for entry in result["phases"][phase]["history"] for split in ("train", "val")]


def test_a_second_run_computes_nothing(tiny, tmp_path, monkeypatch):
    first = run(tiny, tmp_path / "a")
    before = {folder: folder.stat().st_mtime_ns for folder in stores(tmp_path)}
    monkeypatch.setattr(extraction, "write", lambda *_: pytest.fail("computed again"))
    tiny.probe.learning_rate *= 0.5
    second = run(tiny, tmp_path / "b")
    assert {folder: folder.stat().st_mtime_ns for folder in stores(tmp_path)} == before
    assert len(before) == 4  # two cuts, two splits
    assert losses(second) != losses(first)
    assert second["features"]["examples_per_second"] is None


CHANGES = {
    "model.dtype": "bfloat16",
    "data.pixels": "unit",
    "data.resize": "crop",
    "data.image_size": (64, 32),
    "data.splits": ("train[:50%]", "train[50%:]"),
    "features.dtype": "bfloat16",
    "seed": 1,
}


def name_of(config, cut=3, view=None, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    setup = load(config, Clock())
    wanted = features.Wanted(setup.data.splits["train"], cut, view)
    return features._name(features._facts(setup, zoo.init(setup.model, config.seed, None), wanted))


def test_what_changes_the_numbers_changes_the_store_and_nothing_else_does(tiny):
    name = name_of(tiny)
    names = {name, name_of(tiny, 2), name_of(tiny, view=0), name_of(tiny, view=1)}
    names.add(name_of(tiny, view=0, **{"data.augment.randaugment": (2, 9)}))
    for key, value in CHANGES.items():
        names.add(name_of(tiny, **{key: value}))
    assert len(names) == 5 + len(CHANGES)
    tiny.update_from_flattened_dict({"probe.learning_rate": 1.0, "model.dropout": 0.5, "finetune.epochs": 9})
    assert name_of(tiny) == name


def test_a_damaged_row_is_noticed_and_the_same_command_computes_it_again(tiny, tmp_path):
    expected = run(tiny, tmp_path / "whole")
    for folder in stores(tmp_path):
        content = bytearray((folder / "inputs-00000.npy").read_bytes())
        content[-1] ^= 1
        (folder / "inputs-00000.npy").write_bytes(content)
    for _ in stores(tmp_path):
        with pytest.raises(WorkdirError, match=r"damaged; row \d+ of .*the same command"):
            run(tiny, tmp_path / "run")
    assert losses(run(tiny, tmp_path / "run")) == losses(expected)


def of_store(name):
    """What damages a file of every store: `spoil(bytes) -> bytes`."""
    spoilers = {
        "cut": lambda content: content[: len(content) // 2],
        "emptied": lambda content: b"",
        "header": lambda content: content[:9] + bytes([content[9] ^ 16]) + content[10:],
        "middle": lambda content: content[: len(content) // 2] + b"\x07" + content[len(content) // 2 + 1 :],
        "end": lambda content: content[:-2] + bytes([content[-2] ^ 1]) + content[-1:],
    }
    return spoilers[name]


@pytest.mark.parametrize("damage", ["cut", "emptied", "header", "middle", "end"])
@pytest.mark.parametrize("file", ["inputs-00000.npy", "rows-00000.npy", "store.json"])
def test_a_damaged_store_heals_or_changes_nothing(tiny, tmp_path, file, damage):
    tiny.finetune.epochs = 0
    expected = run(tiny, tmp_path / "whole")
    for folder in stores(tmp_path):
        (folder / file).write_bytes(of_store(damage)((folder / file).read_bytes()))
    for _ in stores(tmp_path):
        with contextlib.suppress(WorkdirError):
            run(tiny, tmp_path / "run")
    assert losses(run(tiny, tmp_path / "run"), "probe") == losses(expected, "probe")


def test_exchanged_stores_and_rows_are_noticed(tmp_path):
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    for name in "ab":
        writer = store.Writer(tmp_path / name, jax.ShapeDtypeStruct((6, 4), rows.dtype))
        writer.write(np.arange(6), rows, np.ones(6, bool))
        writer.finish({})
    assert store.Store(tmp_path / "a").take(np.arange(6)).tolist() == rows.tolist()
    (tmp_path / "a").rename(tmp_path / "c")
    inputs = np.lib.format.open_memmap(tmp_path / "b" / "inputs-00000.npy", "r+")
    inputs[[1, 2]] = inputs[[2, 1]]
    inputs.flush()
    for name, row in (("c", 0), ("b", 1)):
        with pytest.raises(WorkdirError, match=f"damaged; row {row} of"):
            store.Store(tmp_path / name).take(np.arange(6))


@pytest.mark.optimized
@pytest.mark.parametrize("polls", graded([1, 3, 5], [3]))
def test_a_stopped_extraction_goes_on_where_it_stopped(tiny, tmp_path, monkeypatch, polls):
    expected = run(tiny, tmp_path / "whole")
    shutil.rmtree(tmp_path / "features")
    written = collections.Counter()
    write = store.Writer.write

    def counted(writer, index, *arrays):
        written.update((writer._folder, int(i)) for i in index)
        write(writer, index, *arrays)

    monkeypatch.setattr(store.Writer, "write", counted)
    left = iter([False] * polls + [True])
    with pytest.raises(TerminatedError, match="those done are kept"):
        run(tiny, tmp_path / "run", asked=lambda: next(left, True))
    assert losses(run(tiny, tmp_path / "run")) == losses(expected)
    assert set(written.values()) == {1} and len(written) == 2 * 48


def test_the_speed_is_that_of_the_images_computed_here_without_compiling(tiny, tmp_path, monkeypatch):
    """By a clock on which compiling takes 100 seconds and a batch of up to 8 images one."""
    now, known = [0.0], set()

    def compiled(program):
        now[0] += 0 if program in known else 100
        known.add(program)
        return compile_program(program)

    def from_examples(*args):
        for batch in read_examples(*args):
            now[0] += 1
            yield batch

    compile_program, read_examples = forward.compiled, pipeline.from_examples
    monkeypatch.setattr(forward, "compiled", compiled)
    monkeypatch.setattr(pipeline, "from_examples", from_examples)
    monkeypatch.setattr(inputs, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    left = iter([False, False, True])
    with pytest.raises(TerminatedError):
        run(tiny, tmp_path / "run", asked=lambda: next(left))
    result = run(tiny, tmp_path / "run")  # 36 - 3 x 8 training and 12 val images are left, in two batches each
    assert result["features"]["examples_per_second"] == (12 + 12) / (2 + 2)


def test_rows_that_did_not_reach_the_disk_are_done_again(tmp_path):
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    writer = store.Writer(tmp_path / "s", jax.ShapeDtypeStruct((6, 4), rows.dtype))
    writer.write(np.arange(4), rows[:4], np.asarray([True, True, False, True]))
    np.lib.format.open_memmap(tmp_path / "s.part" / "inputs-00000.npy", "r+")[1] = 0
    writer = store.Writer(tmp_path / "s", jax.ShapeDtypeStruct((6, 4), rows.dtype))
    assert writer.missing([0]).tolist() == [1, 4, 5]
    writer.write(np.asarray([1, 4, 5]), rows[[1, 4, 5]], np.ones(3, bool))
    writer.finish({})
    found = store.Store(tmp_path / "s")
    assert found.readable.tolist() == [True, True, False, True, True, True]
    np.testing.assert_array_equal(found.take(np.asarray([5, 0, 5])), rows[[5, 0, 5]])


def test_bfloat16_takes_half_the_space_and_rounds(tiny, tmp_path):
    tiny.probe.epochs = 0
    plain = run(tiny, tmp_path / "a")
    sizes = {folder.name: (folder / "inputs-00000.npy").stat().st_size for folder in stores(tmp_path)}
    tiny.features.dtype = "bfloat16"
    rounded = run(tiny, tmp_path / "b")
    halved = [(f / "inputs-00000.npy").stat().st_size for f in stores(tmp_path) if f.name not in sizes]
    assert sorted(halved) == pytest.approx([size / 2 for size in sorted(sizes.values())], rel=0.1)
    assert losses(rounded) == pytest.approx(losses(plain), rel=2e-2)
    assert losses(rounded) != losses(plain)


def test_maps_of_two_sizes_are_stored_where_a_stage_hands_on_both(tiny, monkeypatch):
    monkeypatch.setitem(zoo.BACKBONES, "tiny", functools.partial(NASNet, features=8, stem_features=4, num_blocks=1))
    tiny.finetune.freeze_until = "reduction_A_block_stem_1"
    setup = load(tiny, Clock())
    split, variables = setup.data.splits["val"], zoo.init(setup.model, 0, None)
    wanted, corrupt = features.Wanted(split, 2), pipeline.Corrupt(split, 0.0, print)
    quiet = contextlib.nullcontext(lambda done: None)
    found = features.ensure(setup, variables, wanted, None, corrupt, lambda *_: quiet)
    rows = found.take(np.arange(split.num_examples))
    assert {name: array.shape[1:] for name, array in rows.items()} == {"p": (15, 15, 4), "x": (8, 8, 8)}
    pixels = jnp.stack([load_image(split.read(i), (32, 32), "stretch") for i in range(split.num_examples)])
    expected = jax.jit(lambda v, x: run_frozen(setup.model, v, x, 0, 2))(variables, pixels)
    for name, array in rows.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5 * float(expected[name].max()))


def test_stored_views_train_as_the_augmented_images_of_their_epochs(tiny, tmp_path):
    tiny.probe.epochs = 0
    tiny.finetune.update(augment=True, epochs=3)
    tiny.features.augment_views = 3
    stored = run(tiny, tmp_path / "stored")
    tiny.features.update(enabled="off", augment_views=0)
    assert losses(stored) == pytest.approx(losses(run(tiny, tmp_path / "images")), rel=1e-4)
    tiny.features.update(enabled="on", augment_views=1)
    one = losses(run(tiny, tmp_path / "one"))
    assert one[:2] == losses(stored)[:2]
    assert one[2] != losses(stored)[2]


def test_a_full_disk_is_refused_with_the_cuts_that_fit(tiny, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage("/")
    full = tmp_path / "features"  # less than 36 x 1280 x 4 bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000 if path == full else 2**30))
    tiny.features.enabled = "on"
    with pytest.raises(
        WorkdirError, match=r"36 images need 0\.00017 GiB .* one that fits: .*'block_1' \(6\.9e-05 GiB\)"
    ):
        run(tiny, tmp_path / "on")
    tiny.features.enabled = "auto"
    result = run(tiny, tmp_path / "auto")
    assert "probe: train from images; the features of 36 images need" in capsys.readouterr().out
    assert len(result["phases"]["finetune"]["history"]) == 1


def test_two_at_once_compute_a_store_once(tiny, monkeypatch):
    import_tensorflow()
    made, found = [], []
    write = extraction.write
    monkeypatch.setattr(extraction, "write", lambda *given: (made.append(given[4]), write(*given))[1])
    setup = load(tiny, Clock())
    split = setup.data.splits["train"]
    arguments = (setup, zoo.init(setup.model, 0, None), features.Wanted(split, 3), None)
    corrupt = pipeline.Corrupt(split, 0.0, print)

    def ensure():
        quiet = contextlib.nullcontext(lambda done: None)
        found.append(features.ensure(*arguments, corrupt, lambda *_: quiet))

    threads = [threading.Thread(target=ensure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    first, second = (one.take(np.arange(len(split.ids))) for one in found)
    np.testing.assert_array_equal(first, second)


def test_a_row_is_what_the_frozen_stages_make_of_the_image(tiny, tmp_path, images):
    tiny.finetune.epochs = 0
    run(tiny, tmp_path / "run")
    model = zoo.create(tiny, 1)
    split = read_data(tiny).splits["val"]
    found = {len(np.load(f / "rows-00000.npy")): store.Store(f) for f in stores(tmp_path)}[split.num_examples]
    pixels = jnp.stack([load_image(split.read(i), (32, 32), "stretch") for i in range(split.num_examples)])
    expected = run_frozen(model, zoo.init(model, 0, None), pixels, 0, 5)
    np.testing.assert_allclose(found.take(np.arange(len(expected))), expected, atol=1e-5 * float(expected.max()))


def test_list_shows_and_clear_frees(tiny, tmp_path, capsys):
    directory = f"--dir={tmp_path / 'features'}"
    run(tiny, tmp_path / "run")
    first, *others = [folder.name for folder in stores(tmp_path)]
    os.utime(tmp_path / "features" / first / "store.json", (2**32, 2**32))
    assert verb.main(["", "--list", directory]) == 0
    shown = capsys.readouterr().out
    assert f"{first}  " in shown and "unused for -" not in shown, "a file of the future"
    assert first in shown and "tiny activations before block_2, folder:" in shown and "tiny pooled features" in shown
    assert verb.main(["", "--clear", "nothing", directory]) == 2
    assert verb.main(["", "--clear", first, directory]) == 0
    assert [folder.name for folder in stores(tmp_path)] == others
    with features._locked(tmp_path / "features" / f"{others[0]}.lock"):
        assert verb.main(["", "--clear", directory]) == 0
    assert [folder.name for folder in stores(tmp_path)] == others[:1]
    assert f"left {others[0]}, in use now" in capsys.readouterr().out
    assert verb.main(["", "--clear", directory]) == 0
    assert not list((tmp_path / "features").iterdir())


WITHOUT_TENSORFLOW = """
import sys
from tltrain import main
code = main.main(["main", *sys.argv[1:]])
assert "tensorflow" not in sys.modules
sys.exit(code)
"""


def test_tensorflow_is_not_imported_where_the_features_exist(images, tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.BACKBONES, "tiny", TINY)
    path = write_config(tmp_path, images, "config.finetune.epochs = 0")
    run(runpy.run_path(str(path))["get_config"](), tmp_path / "first")
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, "--config", str(path), "--workdir", str(tmp_path / "again")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.shared_data
def test_labels_of_tfds_are_read_once(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("TLTRAIN_CACHE", str(tmp_path))
    config = default()
    config.data.data_dir = str(shared_data / "tfds")
    first = read_data(config).splits["val"]
    assert first.read(0)[:2] == b"\xff\xd8"
    monkeypatch.setattr(records._TFRecords, "read", lambda *_: pytest.fail("read again"))
    second = read_data(config).splits["val"]
    np.testing.assert_array_equal(first.labels, second.labels)
    assert (list(second.ids), second.fingerprint) == (list(first.ids), first.fingerprint)
