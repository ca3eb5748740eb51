"""Checkpoints of one phase: the newest few and the best, by Orbax, each with a manifest of its files.

Orbax survives a kill at any time; it does not notice a flipped bit, so a checkpoint counts from the moment its
manifest (sha256 of every file) is written, and one that does not match is never used.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from tltrain.errors import WeightsError

logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints below `folder`, by step. The best one has the largest `score`, the earliest of equals."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sound = self._verify()
        policy = AnyPreservationPolicy([LatestN(keep), BestN(get_metric_fn=_rank, n=1)])
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False, best_fn=_rank, preservation_policy=policy
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: Any, record: dict[str, Any], score: float) -> None:
        """Stores `state` (a tree of host arrays) and `record` (JSON) under `step`; older ones beyond `keep` go.

        Raises:
            WeightsError: the disk is full or cannot be written; earlier checkpoints stay.
        """
        try:
            args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
            self._manager.save(step, args=args, metrics={"score": score, "step": step}, force=True)
            self._manager.wait_until_finished()
            self._write_manifest(step)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"cannot save step {step}; {error}; at {self._folder}; free space and start again"
            ) from error
        self._sound.append(step)

    def latest(self) -> int | None:
        """The newest sound step."""
        return max(self._steps(), default=None)

    def best(self) -> int | None:
        """The sound step of the highest score, the earliest of equals."""
        return max(self._steps(), key=lambda step: _rank(self._manager.metrics(step)), default=None)

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """`(state, record)` of `step`; `like` gives the shapes and dtypes, and host arrays come back."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), record=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except (OSError, ValueError, KeyError) as error:
            line = str(error).strip().splitlines()[0]
            raise WeightsError(
                f"cannot restore step {step}; {line}; at {self._folder}; start in a new workdir"
            ) from error
        return restored["state"], restored["record"]

    def close(self) -> None:
        """Ends the threads of Orbax."""
        self._manager.close()

    def _steps(self):
        return [step for step in self._manager.all_steps() if step in self._sound]

    def _manifest(self, step):
        return self._folder / f"manifest_{step}.json"

    def _write_manifest(self, step):
        part = self._folder / f"manifest_{step}.part"
        with part.open("w") as file:
            json.dump(_hashes(self._folder / str(step)), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._manifest(step))
        for path in self._folder.glob("manifest_*.json"):
            if not (self._folder / path.stem.removeprefix("manifest_")).is_dir():
                path.unlink()

    def _verify(self) -> list[int]:
        """The steps whose files are those of their manifest; the folders of others are removed or set aside."""
        sound = []
        for folder in self._folder.iterdir():
            if not folder.name.isdigit():
                continue
            manifest = self._manifest(int(folder.name))
            if manifest.is_file() and json.loads(manifest.read_text()) == _hashes(folder):
                sound.append(int(folder.name))
            else:
                kind = "damaged" if manifest.is_file() else "unfinished"
                folder.rename(folder.with_name(f"{kind}_{folder.name}_{os.getpid()}"))
                manifest.unlink(missing_ok=True)
        return sound


def _rank(metrics):
    return (metrics["score"], -metrics["step"])


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
