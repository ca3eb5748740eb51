"""What the phases of a run share, and what each has of its own."""

from pathlib import Path
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

from tltrain.cache.inputs import Inputs
from tltrain.models import freeze
from tltrain.runtime import writer
from tltrain.runtime.checkpoint import Checkpoints
from tltrain.runtime.process import Process
from tltrain.runtime.scalars import Scalars
from tltrain.runtime.workdir import Workdir
from tltrain.training import optim
from tltrain.training.setup import Setup


class Run(NamedTuple):
    """What the phases of one run share: what is fixed of it, the process that does it, its inputs and its record."""

    setup: Setup
    process: Process
    inputs: Inputs
    work: Workdir
    scalars: Scalars


class Phase(NamedTuple):
    """One phase: its config, what is frozen, its learning rate, its checkpoints, and the record these carry."""

    name: str
    config: ConfigDict
    plan: freeze.Plan
    schedule: optax.Schedule
    steps_per_epoch: int
    checkpoints: Checkpoints
    record: dict[str, Any]

    @classmethod
    def of(cls, setup: Setup, name: str, checkpoints: Checkpoints) -> "Phase":
        """The phase `name` before its first step."""
        config, per_epoch = setup.config[name], setup.steps_per_epoch
        record: dict[str, Any] = {"history": [], "partial": None, "solved": None, "clock": {}}
        record |= {"seconds": 0.0, "seconds_waiting": 0.0, "step_examples_per_second": None}
        schedule = optim.make_schedule(config, per_epoch)
        return cls(name, config, setup.plan(name), schedule, per_epoch, checkpoints, record)

    @property
    def num_steps(self) -> int:
        """Steps of the whole phase."""
        return self.config.epochs * self.steps_per_epoch


def open_checkpoints(workdir: Path, setup: Setup, name: str, params: Any) -> Checkpoints:
    """Those of the phase `name`; what is frozen of `params` they hold once. Raises WorkdirError."""
    constants = freeze.constants(setup.plan(name), params)
    keep = setup.config.checkpoint.keep
    return writer.only(lambda: Checkpoints(workdir / "checkpoints" / name, keep, constants))
