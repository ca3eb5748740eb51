"""The machine and the workdir: what computes, with how much memory and disk, and whether a record can be written."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain.checks.case import Case
from tltrain.checks.finding import Finding, advice, fine, problem
from tltrain.data import sources
from tltrain.errors import ConfigError, DataError, WorkdirError
from tltrain.places import cache_dir
from tltrain.runtime.process import free_memory
from tltrain.runtime.record import read_json

_NVIDIA = Path("/proc/driver/nvidia/gpus")  # one folder a GPU where NVIDIA's driver is loaded
_FREE_GIB = 1.0  # below it a few checkpoints and a log fill the disk


def check_devices(case: Case) -> Iterator[Finding]:
    """What JAX computes on, and what it leaves idle."""
    devices = jax.local_devices()
    memory = memory_of_device()
    size = f", {memory / 2**30:.0f} GiB each" if memory and devices[0].platform != "cpu" else ""
    yield fine(
        f"{len(devices)} {devices[0].platform} device{'s'[: len(devices) > 1]} ({devices[0].device_kind}{size}), "
        f"{os.cpu_count()} cores, {free_memory() / 2**30:.1f} GiB of memory free; jax {metadata.version('jax')}"
    )
    idle = len(list(_NVIDIA.iterdir())) if _NVIDIA.is_dir() else 0
    if idle and jax.default_backend() == "cpu":
        yield advice(
            f"this machine has {idle} NVIDIA GPU{'s'[: idle > 1]} and JAX runs on its CPU: pip install -e '.[cuda]', "
            "and see that JAX_PLATFORMS does not say cpu"
        )
    if case.mesh.size > 1:
        yield fine(f"batch_size = {case.config.batch_size}: {case.config.batch_size // case.mesh.size} on each device")


def check_workdir(case: Case) -> Iterator[Finding]:
    """Whether the workdir and the cache folder can be written, have room, and hold nothing in the way."""
    yield from _record_in(case.workdir, case.config)
    for what, path in (("workdir", case.workdir), ("cache folder", cache_dir())):
        folder = existing(path)
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            yield problem(f"cannot write the {what} {path}: {folder} is not a folder of yours", WorkdirError.exit_code)
            continue
        free = shutil.disk_usage(folder).free / 2**30
        text = f"{free:.1f} GiB free for the {what} {path}"
        yield fine(text) if free > _FREE_GIB else problem(f"only {text}; free some", WorkdirError.exit_code)


def _record_in(workdir: Path, config: ConfigDict) -> Iterator[Finding]:
    stored = read_json(workdir / "config.json")
    if stored is None:
        return
    with contextlib.suppress(DataError):  # which is told with the data
        config = sources.resolved(config)
    if changed := config_lib.differences(config, stored):
        yield problem(
            f"the workdir {workdir} holds a run of another config ({', '.join(changed)}); choose another --workdir",
            ConfigError.exit_code,
        )
    elif (workdir / "report.json").exists():
        yield advice(f"the workdir {workdir} holds this run, finished: the command would show its result again")
    else:
        yield fine(f"the workdir {workdir} holds this run, stopped on its way: the command would go on with it")


def existing(path: Path) -> Path:
    """The nearest of `path` and the folders above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def memory_of_device() -> int:
    """Bytes that a step may take on a device: what JAX lets it have, on CPU the free memory of the machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] if "bytes_limit" in stats else free_memory()
