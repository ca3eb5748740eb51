"""What is examined: all that a run of a config would load, each part read when a section first asks for it."""

import collections
import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tltrain import hub
from tltrain.checks.finding import NotThereYetError
from tltrain.data import inspect, sources, tfds_source
from tltrain.data.split import Data
from tltrain.data.tensorflow import import_tensorflow
from tltrain.errors import DataError, TerminatedError
from tltrain.models import zoo
from tltrain.models.backbone import Backbone
from tltrain.models.classifier import Classifier
from tltrain.runtime import console, parallel
from tltrain.training import setup
from tltrain.training.setup import Setup
from tltrain.training.tasks import choose
from tltrain.training.tasks.task import Task
from tltrain.weights import download, reader
from tltrain.weights.variables import Loaded

_SAMPLE, _MIN_SAMPLE = 128, 32  # images whose pixels are looked at, of 224 x 224, and how few of large ones


class Case:
    """A run that has not been started.

    Every part raises what the run would raise (`TltrainError`), or `NotThereYetError` where the run would first fetch
    it: nothing is downloaded, and nothing written but what tltrain caches.
    """

    def __init__(self, config: ConfigDict, workdir: Path, limit: int, stop: Callable[[], bool]) -> None:
        """Of a valid config; looks at `limit` examples of each split, spread evenly, or all where it is 0.

        Once `stop()` is true the reading of examples ends with a `TerminatedError`.
        """
        self.config, self.workdir, self.limit, self.stop = config, workdir, limit, stop
        self.seconds: dict[str, float] = collections.defaultdict(float)  # that a run would spend as well, by part

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices."""
        return parallel.make_mesh(self.config.batch_size)

    @functools.cached_property
    def data(self) -> Data:
        """The splits."""
        kind, _, name = self.config.data.source.partition(":")
        if kind == "tfds" and (size := tfds_source.to_prepare(name, self.config.data)):
            raise NotThereYetError(
                f"the data set {name!r} is not prepared yet; a run would download {size} and prepare it first; "
                "its examples cannot be looked at before"
            )
        with self._timed("data"):
            return setup.read_data(sources.resolved(self.config))

    @functools.cached_property
    def looked(self) -> dict[str, inspect.Looked]:
        """The files of each split, every one read and decoded."""
        chosen = {name: self._chosen(len(split.ids)) for name, split in self.data.splits.items()}
        found: dict[str, inspect.Looked] = {}
        with self._timed("tensorflow"):
            import_tensorflow()
        with console.progress(f"Looking at the {self.data.kind.name}", sum(map(len, chosen.values()))) as update:
            for name, index in chosen.items():
                before, split = sum(len(looked.files) for looked in found.values()), self.data.splits[name]
                # of TFDS, whose files are read as a whole; a file that cannot be read is named with the others
                with self._timed(f"read {name}"), contextlib.suppress(OSError):
                    split.read(0)

                def progress(done, before=before):
                    update(before + done)
                    self.end_if_stopped()

                found[name] = inspect.look(split, index, progress)
        return found

    def end_if_stopped(self) -> None:
        """Raises TerminatedError where the process was asked to stop."""
        if self.stop():
            raise TerminatedError("stopped; nothing was changed; start the same command again")

    @contextlib.contextmanager
    def _timed(self, part):
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started

    def _chosen(self, count):
        return np.unique(np.linspace(0, count - 1, min(count, self.limit or count)).round().astype(int))

    @functools.cached_property
    def sample(self) -> np.ndarray:
        """Up to 128 training images as the backbone would get them, uint8 `[N, H, W, 3]`, in random order."""
        looked, split = self.looked["train"], self.data.splits["train"]
        readable = looked.files[looked.readable]
        if not len(readable):
            raise DataError(f"no training example can be read; in {self.config.data.source}; see their errors above")
        height, width = self.config.data.image_size
        count = min(max(_SAMPLE * 224 * 224 // (height * width), _MIN_SAMPLE), _SAMPLE)
        chosen = np.random.default_rng(self.config.seed).permutation(readable)[:count]
        return np.stack([split.kind.row(split.read(int(i))) for i in chosen])

    @functools.cached_property
    def backbone(self) -> Backbone:
        """The backbone, whatever the data."""
        zoo.resolved(self.config)
        return zoo.create(self.config, 1).backbone

    @functools.cached_property
    def task(self) -> Task:
        """What the labels are."""
        setup.check_batch(self.config, self.data)
        return choose.of(self.config, self.data)

    @functools.cached_property
    def model(self) -> Classifier:
        """The model for the labels of the data."""
        zoo.resolved(self.config)
        return setup.model_for(self.config, self.task, self.data.splits["train"].num_examples)

    @functools.cached_property
    def setup(self) -> Setup:
        """What is fixed of the run."""
        return Setup(self.config, self.data, self.task, self.model, self.mesh)

    @functools.cached_property
    def weight_path(self) -> Path | None:
        """The pretrained weights, None where the config asks for random ones."""
        source = self.config.model.weights
        if not (hub.is_random(source) or source == "imagenet" or hub.is_here(source)):
            raise NotThereYetError(f"the weights are not there yet; a run would first fetch them from {source}")
        file = self.backbone.weight_file if source == "imagenet" else None
        if file and not (path := download.local(file)).exists():
            size = "a file" if file.num_bytes is None else f"{file.num_bytes / 2**20:.1f} MiB"
            raise NotThereYetError(
                f"the weights are not there yet; a run would download {size} from {file.url} "
                f"to {path}; without a network put the file there by hand"
            )
        return reader.path_of(source, self.backbone)

    @functools.cached_property
    def loaded(self) -> Loaded | None:
        """What is in the weight file, None for random weights."""
        if self.weight_path is None:
            return None
        shapes = {name: tree["backbone"] for name, tree in zoo.shapes(zoo.create(self.config, 1)).items()}
        return reader.load(self.weight_path, self.backbone, shapes, self.config.model.sha256)

    @functools.cached_property
    def variables(self) -> dict:
        """What the run starts from."""
        return zoo.init(self.model, self.config.seed, self.loaded.variables if self.loaded else None)
