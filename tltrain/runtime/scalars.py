"""Scalars of a run to TensorBoard, by tensorboardX, which needs no TensorFlow, and to Weights & Biases, if wanted."""

import contextlib
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from tltrain import config as config_lib
from tltrain import places
from tltrain.errors import ConfigError
from tltrain.runtime import console


class Scalars:
    """Scalars by phase and step, to where `config.log` says: one run of TensorBoard a phase, one of W&B in all."""

    def __init__(self, workdir: Path, config: ConfigDict) -> None:
        """Raises ConfigError where W&B is wanted and cannot be used."""
        self._folder = workdir / "tensorboard" if config.log.tensorboard else None
        self._files: dict[str, RecordWriter] = {}
        self._wandb = _wandb_run(workdir, config) if config.log.wandb_project else None
        self._failed = True

    def close(self) -> None:
        """Closes the files; without a `result` the run of W&B counts as failed, and may be resumed."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # all of it is flushed, or its error is told already
                file.close()
        if self._wandb:
            self._wandb.finish(exit_code=int(self._failed))

    def write(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Adds `values` by tag at `step`; after a resume, later steps of an earlier process are hidden.

        Raises:
            WorkdirError: the disk is full or cannot be written.
        """
        if self._folder:
            folder = self._folder / phase
            with places.writing(folder, "free space or check the folder, or set log.tensorboard = False"):
                self._write_events(folder, step, values)
        if self._wandb:
            self._wandb.log({f"{phase}/{tag}": value for tag, value in values.items()} | {f"{phase}/step": step})

    def _write_events(self, folder, step, values):
        """By this thread, which hears of errors; a new file begins with what hides the later steps of others."""
        parts: list[dict[str, Any]] = []
        if folder.name not in self._files:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
            self._files[folder.name] = RecordWriter(str(folder / name))
            parts += [{"file_version": "brain.Event:2"}, {"session_log": SessionLog(status=SessionLog.START)}]
        parts += [{"summary": scalar(tag, value)} for tag, value in values.items()]
        for part in parts:
            event = Event(wall_time=time.time(), step=step, **part)
            self._files[folder.name].write(event.SerializeToString())
        self._files[folder.name].flush()

    def result(self, report: dict[str, Any]) -> None:
        """Adds the scores of the chosen model: `report` is the content of `report.json`."""
        self._failed = False
        if self._wandb:
            scores = {split: found for split, found in (report["chosen"] | report).items() if split in ("val", "test")}
            self._wandb.summary.update({"chosen": report["chosen"]["phase"], **scores, "seconds": report["seconds"]})


def _wandb_run(workdir: Path, config: ConfigDict) -> Any:
    """A run of W&B, named as the last two folders of the workdir, which keeps its id: a resumed run goes on with it."""
    project = config.log.wandb_project
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"log.wandb_project = {project!r} and the package wandb is not there; pip install 'tltrain[wandb]', "
            "or set log.wandb_project to ''"
        ) from error
    path = workdir / "wandb" / "id"
    with places.writing(path, "free space or check the folder, or set log.wandb_project to ''"):
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(uuid.uuid4().hex)
    try:
        run = wandb.init(
            project=project,
            name="/".join(workdir.resolve().parts[-2:]),
            id=path.read_text(),
            resume="allow",
            dir=workdir,
            config=config_lib.flatten(config),
            reinit="create_new",  # the probes of a grid are open at the same time
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.Error as error:
        raise ConfigError(
            f"W&B refuses the run; {' '.join(str(error).split())}; log.wandb_project = {project!r}; call wandb login, "
            "or set WANDB_MODE=offline"
        ) from error
    for phase in config_lib.PHASES:
        run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
    console.say(f"W&B: {run.url or run.dir}")
    return run
