"""Which task a config and its data are."""

from ml_collections import ConfigDict

from tltrain.data.split import Data
from tltrain.errors import ConfigError
from tltrain.training.tasks.classification import Classification
from tltrain.training.tasks.multi_label import MultiLabel
from tltrain.training.tasks.regression import Regression
from tltrain.training.tasks.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification, MultiLabel, Regression)}


def of(config: ConfigDict, data: Data) -> Task:
    """The task of a whole config on `data`.

    Raises:
        ConfigError: `config.task` is another, or keys are set that labels of this kind cannot have.
    """
    if config.task not in ("auto", data.task):
        raise ConfigError(f"task = {config.task!r}, allowed: 'auto' or {data.task!r}, which the labels of the data are")
    return TASKS[data.task].of(config, data.class_names, data.splits["train"])


def of_finished(config: ConfigDict, name: str, class_names: tuple[str, ...]) -> Task:
    """That of a finished run of `config`, whose labels were of the task `name`; good for evaluation."""
    return TASKS[name].of(config, class_names, None)
