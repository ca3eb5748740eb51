"""What is fixed of a run before its first step."""

from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from tltrain.data import pipeline, sources
from tltrain.data.split import Data
from tltrain.errors import ConfigError
from tltrain.models import freeze, zoo
from tltrain.models.classifier import Classifier
from tltrain.models.neighbors import Bank
from tltrain.runtime import hosts, parallel
from tltrain.runtime.process import Clock
from tltrain.training.tasks import choose
from tltrain.training.tasks.task import Task

_SMALL_BATCH, _PADDED = 256, 8  # examples that a batch may always have, and times the training examples


class Setup(NamedTuple):
    """The experimental setup: a valid config, the data, the task and the model it describes, and the devices.

    Training steps span the devices of all processes, `mesh`; all else is done by each process on its own ones.
    """

    config: ConfigDict
    data: Data
    task: Task
    model: Classifier
    mesh: Mesh

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every training example once."""
        return pipeline.num_batches(self.data.splits["train"].num_examples, self.config.batch_size)

    @property
    def local_mesh(self) -> Mesh:
        """The devices of this process."""
        return parallel.local(self.mesh)

    @property
    def local_batch_size(self) -> int:
        """Rows of a batch that this process computes."""
        return self.config.batch_size // hosts.count()

    @property
    def num_stages(self) -> int:
        """Those of the backbone: after the last come pooled features."""
        return len(self.model.backbone.stages)

    def plan(self, phase: str) -> freeze.Plan:
        """What trains in a phase, at its end where stages are unfrozen one by one."""
        return freeze.of_phase(self.config, phase, self.model.backbone.stages)


def read_data(config: ConfigDict) -> Data:
    """The data of a resolved `config`; raises DataError where they cannot be read."""
    return sources.load(config, zoo.kind(config))


def load(config: ConfigDict, clock: Clock) -> Setup:
    """That of `config`, a valid and resolved one; the data are read.

    Raises:
        TltrainError: data that cannot be read, or that the config makes no sense with.
    """
    mesh = parallel.make_mesh(config.batch_size)
    with clock("data"):
        data = read_data(config)
    check_batch(config, data)
    task = choose.of(config, data)
    return Setup(config, data, task, model_for(config, task, data.splits["train"].num_examples), mesh)


def model_for(config: ConfigDict, task: Task, num_examples: int) -> Classifier:
    """The model of `config` for `task`; where its head is of nearest neighbours, of `num_examples` of train."""
    is_knn = config.probe.optimizer == "knn"
    bank = Bank(num_examples, config.probe.neighbors, task.exclusive) if is_knn else None
    return zoo.create(config, task.num_outputs, bank)


def check_batch(config: ConfigDict, data: Data) -> None:
    """Raises ConfigError where a batch would be padding for the most part."""
    num_examples = data.splits["train"].num_examples
    largest = max(_SMALL_BATCH, _PADDED * num_examples)
    if config.batch_size > largest:
        raise ConfigError(
            f"batch_size = {config.batch_size}, allowed: at most {largest} with {num_examples} training examples, for "
            "the rest of a batch is padding; in the config; lower it"
        )
