"""Shared fixtures: a few real JPEG files, a tiny backbone; which tests run, and that nothing is skipped in CI."""

import csv
import functools
import gc
import json
import os
import shutil
import tempfile
import time
import tracemalloc
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
import pytest
import small_text
from PIL import Image
from tokenizers.implementations import BertWordPieceTokenizer

from tltrain import places
from tltrain.config import default
from tltrain.data.kinds.image_augment import Augment
from tltrain.data.kinds.images import Images
from tltrain.models import zoo
from tltrain.models.mobilenet_v2 import MobileNetV2
from tltrain.runtime import parallel

# programs are compiled once for all tests, workers, subprocesses and later runs of the suite
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = places.cache_dir() / "xla_tests" / parallel.processor()
    _programs.mkdir(parents=True, exist_ok=True)
    for _path in _programs.iterdir():  # of code that is gone, or is compiled again once a month
        if time.time() - _path.stat().st_mtime > 30 * 24 * 3600:
            _path.unlink(missing_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_programs)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
# nor do pictures and labels of the tests stay in the cache of a user
if "TLTRAIN_CACHE" not in os.environ:
    _kept = tempfile.TemporaryDirectory(prefix="tltrain_cache_")
    os.environ["TLTRAIN_CACHE"] = _kept.name

DATA = os.environ.get("TLTRAIN_TEST_DATA")
BROWSER = os.environ.get("TLTRAIN_TEST_BROWSER") or shutil.which("chromium")
SLURM = os.environ.get("TLTRAIN_TEST_SLURM")
NPM = os.environ.get("TLTRAIN_TEST_NPM")


# options with which XLA compiles in a fifth of the time, to slower programs; and as $XLA_FLAGS
QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
QUICKLY_COMPILED = " ".join(f"--{name}={value}".lower() for name, value in QUICKLY.items())


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="all tests")
    parser.addoption("--optimized", action="store_true", help="programs are compiled as those of users are")


def pytest_configure(config):
    if not config.getoption("optimized"):
        os.environ.setdefault("XLA_FLAGS", QUICKLY_COMPILED)


def pytest_collection_modifyitems(config, items):
    full = config.getoption("full")
    chosen = {"full": full, "shared_data": full and DATA, "browser": full and BROWSER, "slurm": full and SLURM}
    chosen["npm"] = full and NPM
    absent = {marker for marker, run in chosen.items() if not run}
    deselected = [item for item in items if absent & {mark.name for mark in item.iter_markers()}]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]


def bytes_each(function, few, many):
    """By how many bytes the most memory of `function(count)` grows with each of the `count`, from `few` to `many`."""

    def peak(count):
        tracemalloc.start()
        function(count)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    gc.collect()
    # now and then a table of the interpreter itself grows
    least = [min(peak(count) for _ in range(3)) for count in (few, many)]
    return (least[1] - least[0]) / (many - few)


def graded(cases, quick):
    """Parameters of a test, of which those outside `quick` run with --full alone."""
    marks = {False: [pytest.mark.full], True: []}
    return [pytest.param(*(c if isinstance(c, tuple) else (c,)), marks=marks[c in quick]) for c in cases]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def shared_data():
    return Path(DATA)


def write_images(root: Path, counts: dict[str, int], size=(40, 48)) -> Path:
    """One folder a class: bright images for the first class, dark for the second, noise on both; JPEG."""
    rng = np.random.default_rng(0)
    for level, (name, count) in zip((170, 85, 30), counts.items(), strict=False):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(rng.normal(level, 40, (*size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}_{i:03}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of 30 light and 18 dark images."""
    return write_images(tmp_path_factory.mktemp("images"), {"light": 30, "dark": 18})


STILL = Augment(False, False, min_area=1.0, rotation=0.0, color=0.0, randaugment=(0, 0), seed=0)
IMAGES = Images((32, 32), "stretch", STILL)
TINY = functools.partial(MobileNetV2, alpha=0.35, groups=((16, 1, 1, 1), (24, 2, 2, 6)))


def tiny_config(images, features):
    """A config whose whole run takes seconds: 48 images of 32x32 and a MobileNetV2 of 5 stages, at random weights."""
    config = default()
    config.data.source = f"folder:{images}"
    config.data.splits = ("train[:75%]", "train[75%:]")
    config.data.image_size = (32, 32)
    config.model.backbone = "tiny"
    config.model.weights = "random"
    config.batch_size = 8
    config.features.dir = str(features)
    config.probe.epochs = 2
    config.finetune.epochs = 1
    config.finetune.freeze_until = "block_1"
    config.finetune.augment = False
    config.log.tensorboard = False
    return config


@pytest.fixture
def tiny(images, tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.BACKBONES, "tiny", TINY)
    return tiny_config(images, tmp_path / "features")


TINY_BERT = {
    "model_type": "bert",
    "vocab_size": len(small_text.vocabulary()),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
}


def write_tiny_bert(folder: Path, **changes) -> Path:
    """A `config.json` and a tokenizer without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: i for i, word in enumerate(small_text.vocabulary())}
    BertWordPieceTokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(TINY_BERT | changes))
    (folder / "model.safetensors").touch()
    return folder


def tiny_text_config(folder: Path, features: Path):
    """A config whose whole run takes seconds: 40 texts of a table, and a BERT of 4 stages at random weights."""
    write_tiny_bert(folder / "bert")
    with (folder / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *small_text.reviews()])
    config = tiny_config("", features)
    config.data.update(source=f"table:{folder / 'reviews.csv'}", image_size=None, max_tokens=16)
    config.model.update(backbone="bert", weights=f"random:{folder / 'bert'}")
    config.finetune.freeze_until = "layer_0"
    return config


@pytest.fixture
def tiny_text(tmp_path):
    return tiny_text_config(tmp_path / "texts", tmp_path / "features")


NUM_SHARDS = 4


def write_records(folder: Path, count: int, form: str) -> None:
    """The TFDS set `pictures`: `count` noisy images of 3 classes and of any size, in shards in the form `form`."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=("a", "b", "c"))}
            keys = ("image", "label")
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            rng = np.random.default_rng(0)
            for i in range(count):
                size = (int(rng.integers(8, 60)), int(rng.integers(8, 60)), 3)
                yield i, {"image": rng.integers(0, 256, size, np.uint8), "label": i % 3}

    config = tfds.download.DownloadConfig(num_shards=NUM_SHARDS)
    Pictures(data_dir=folder, file_format=form).download_and_prepare(download_config=config)
