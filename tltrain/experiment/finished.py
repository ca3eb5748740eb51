"""A finished run, read back from its workdir: what every verb after training starts from."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain.cache.inputs import Inputs
from tltrain.config import PHASES
from tltrain.data import identity, sources
from tltrain.data.kinds.kind import Kind
from tltrain.data.split import Data, Split
from tltrain.errors import DataError, TerminatedError, WeightsError
from tltrain.experiment import evaluation
from tltrain.experiment.evaluation import Evaluation
from tltrain.models import freeze, zoo
from tltrain.models.classifier import Classifier
from tltrain.runtime import parallel
from tltrain.runtime.checkpoint import Checkpoints, with_leaves
from tltrain.runtime.process import Process
from tltrain.runtime.record import PARTS, PRETRAINED, read_json, read_report
from tltrain.training import steps
from tltrain.training.setup import Setup, model_for
from tltrain.training.tasks import choose
from tltrain.training.tasks.task import Task


class Finished(NamedTuple):
    """A run and its best model on val.

    `variables` are `params` and `batch_stats` of `model`, `phase` is the one they come from and `cut` the index of its
    first trainable stage; `report` and `made_of` are the contents of `report.json` and `identity.json`.
    """

    path: Path
    config: ConfigDict
    task: Task
    model: Classifier
    variables: dict
    phase: str
    cut: int
    report: dict[str, Any]
    made_of: dict[str, Any]

    @property
    def kind(self) -> Kind:
        """What its examples are."""
        return zoo.kind(self.config)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the model; () where labels are numbers."""
        return self.task.class_names

    def data(self, split: Split, name: str) -> Data:
        """`split`, whose labels are those of the run, as data."""
        return Data({name: split}, self.class_names, self.task.name)

    def split(self, expression: str) -> Split:
        """The split `expression` of what its config names; raises DataError where that cannot be read."""
        like = Data({}, self.class_names, self.task.name)
        return sources.load_split(self.config.data, self.kind, expression, like)


def load(path: Path) -> Finished:
    """Reads the run of the workdir `path`.

    Raises:
        WorkdirError: there is no finished run, or its record is damaged.
        WeightsError: its checkpoint is missing or damaged.
        ConfigError: its config is not one of this version.
    """
    report = read_report(path, [name for name in PARTS if name.endswith(".json")])
    config = config_lib.from_dict(read_json(path / "config.json"))
    if (path / PRETRAINED).is_dir():  # the weights may be gone
        config.model.weights = f"random:{path / PRETRAINED}"
        config.model.sha256 = ""
    task = choose.of_finished(config, report["task"]["name"], tuple(report["class_names"]))
    model = model_for(config, task, report["num_examples"]["train"])
    phase, step = report["chosen"]["phase"], report["chosen"]["step"]
    cut = freeze.cut(model.backbone.stages, config[phase].freeze_until)
    variables, made_of = model_of(path, config, model, phase, step), read_json(path / "identity.json")
    return Finished(path, config, task, model, variables, phase, cut, report, made_of)


def own_split(run: Finished, expression: str) -> Split:
    """The split `expression` of the data of `run`, as they were in the run.

    Raises:
        DataError: it cannot be read, or its files are not what they were.
    """
    split = run.split(expression)
    if changed := identity.changes(run.made_of, split):
        raise DataError(
            f"{run.config.data.source} is not what the run saw; {'; '.join(changed)}; put it back, or name it by "
            "--source to evaluate on it as it is"
        )
    return split


def model_of(path: Path, config: ConfigDict, model: Classifier, phase: str, step: int | None = None) -> dict:
    """The variables of a finished phase of the run of `config` in `path`, after `step`, None: where it was best on val.

    Raises:
        WeightsError: the checkpoint is missing or damaged.
    """
    shapes, plan = zoo.shapes(model), freeze.of_phase(config, phase, model.backbone.stages)
    params = freeze.with_factors(shapes["params"], plan)
    folder, constants = path / "checkpoints" / phase, freeze.constants(plan, params)
    with contextlib.closing(Checkpoints(folder, config.checkpoint.keep, constants)) as checkpoints:
        step = checkpoints.best() if step is None else step
        if step is None:
            raise WeightsError(f"no sound checkpoint of {phase}; in {folder}; start in a new workdir")
        leaves, _ = checkpoints.restore(step)
    average = freeze.split(params, plan)[0] if config[phase].ema else None
    like = steps.TrainState(jnp.int32(step), params, shapes["batch_stats"], (), average)
    return steps.variables(with_leaves(like, leaves), plan)


def evaluate(run: Finished, split: Split, process: Process, features: np.ndarray | None = None) -> Evaluation:
    """The best model of `run` on `split`, whose labels are as those of the run; `features` as for `evaluation.over`.

    Equal examples give bitwise the logits of the run's own evaluation, on CPU and unless `features.dtype` rounds.

    Raises:
        DataError: too many unreadable examples.
        TerminatedError: `process.stop()` became true.
    """
    settings = config_lib.copied(run.config)
    for phase in PHASES:
        settings[phase].epochs = int(phase == run.phase)  # no other phase wants activations of its own
    setup = Setup(settings, run.data(split, "given"), run.task, run.model, parallel.make_mesh(settings.batch_size))
    inputs = Inputs(setup, process).of_phase(run.phase, "given", run.variables)
    title = f"evaluating {split.expression}"
    found = evaluation.over(setup, run.variables, inputs, split, title, process.stop, features)
    if found is None:
        raise TerminatedError(f"stopped while {split.expression} was evaluated; nothing was written")
    return found
