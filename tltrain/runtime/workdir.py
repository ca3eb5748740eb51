"""The record of a run on disk: config, environment, metrics by step, one lock."""

import contextlib
import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain import formats, places
from tltrain.errors import ConfigError, WorkdirError
from tltrain.runtime import hosts, record

_PACKAGES = tuple(
    "jax jaxlib flax optax orbax-checkpoint tensorflow-datasets numpy pillow h5py safetensors tokenizers".split()
)
_REMEDY = "free space or check the folder, and start again, or choose another --workdir"


class Workdir:
    """A folder that one process at a time writes."""

    def __init__(self, path: Path, config: ConfigDict) -> None:
        """Takes the lock; nothing of a run is written before `begin`.

        Raises:
            WorkdirError: the folder cannot be written or locked, or another process holds it.
            ConfigError: it holds a run of another config; the differing keys are named.
        """
        self.path = path
        with contextlib.ExitStack() as undo:
            with places.writing(f"the workdir {path}", _REMEDY):
                path.mkdir(parents=True, exist_ok=True)
                # unbuffered, so that to close it never writes
                self._lock = undo.enter_context((path / ".lock").open("ab+", buffering=0))
                self._take_lock()
            stored = self.read_json("config.json")
            if stored is not None and (changed := config_lib.differences(config, stored)):
                raise ConfigError(
                    f"the workdir holds a run of another config; {path}: {', '.join(changed)}; "
                    "choose another --workdir, or give the same config"
                )
            undo.pop_all()
        self._config = config

    def begin(self, made_of: dict[str, Any]) -> None:
        """Writes what the run is and what it is made of, as by `identity.of`: the folder belongs to it now."""
        self.write_json("config.json", json.loads(config_lib.to_json(self._config)))
        self.write_json("environment.json", _environment())
        self.write_json("class_names.json", made_of["class_names"])
        self.write_json("identity.json", record.with_digest({"format": formats.WORKDIR} | made_of))

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.close()

    def _take_lock(self):
        try:
            places.lock(self._lock)
        except BlockingIOError as error:
            self._lock.seek(0)
            holder = self._lock.read().decode(errors="replace").strip() or "another process"
            raise WorkdirError(
                f"the workdir is in use; {self.path} by {holder}; wait, or choose another --workdir"
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"{socket.gethostname()} pid {os.getpid()}".encode())

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of the workdir, None where it is not there."""
        return record.read_json(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file as a whole: the old content or the new stands there, never a part."""
        self._write(name, [record.json_of(value, indent=2)])

    def keep(self, name: str, text: str) -> str:
        """The content of the file `name` of the workdir, which is `text` where it was not there."""
        path = self.path / name
        with places.writing(path, _REMEDY):
            if path.exists():
                return path.read_bytes().decode()
            path.parent.mkdir(exist_ok=True)
            part = path.with_name(f"{path.name}.part")
            part.write_bytes(text.encode())
            part.replace(path)
        return text

    def write_lines(self, name: str, values: Iterable[dict[str, Any]]) -> None:
        """Writes a file of JSON lines, as a whole too."""
        self._write(name, map(record.json_of, values))

    def _write(self, name, lines):
        part = self.path / f"{name}.part"
        with places.writing(self.path / name, _REMEDY):
            with part.open("w") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path / name)

    def finish(self, report: dict[str, Any]) -> dict[str, Any]:
        """Writes `report` as `report.json`, with the digests of what the run is read back from; returns all of it."""
        whole = record.sealed(self.path, report)
        self.write_json("report.json", whole)
        return whole

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds one line to `metrics.jsonl`."""
        path = self.path / "metrics.jsonl"
        with places.writing(path, _REMEDY), path.open("a") as file:
            file.write(record.json_of(line) + "\n")

    def rewind_metrics(self, phase: str, step: int) -> None:
        """Drops the lines of `phase` after `step`, and a line that a kill cut short: those steps are done again."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        with places.writing(path, _REMEDY):
            kept = [line for line, of, at in self._metrics() if of != phase or at <= step]
            part = path.with_suffix(".part")
            part.write_bytes(b"".join(kept))
            part.replace(path)

    def logged(self, phase: str) -> str:
        """The sha256 of the lines of `phase` in `metrics.jsonl`."""
        return hashlib.sha256(b"".join(line for line, of, _ in self._metrics() if of == phase)).hexdigest()

    def _metrics(self):
        """The lines of `metrics.jsonl`, each with its phase and step; a damaged line is none."""
        path = self.path / "metrics.jsonl"
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                yield line + b"\n", str(entry["phase"]), int(entry["step"])


def _environment() -> dict[str, Any]:
    def git(*args):
        command = ["git", "-C", str(Path(__file__).parent), *args]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return found.stdout.strip() if found.returncode == 0 else None

    try:
        commit, dirty = git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except OSError:
        commit, dirty = None, None
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "command": sys.argv,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "processes": hosts.count(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.local_devices()],
        "packages": versions,
    }
