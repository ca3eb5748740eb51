"""Checkpoints of one phase: the newest few and the best, by Orbax, each with a manifest of its files.

A state is stored as `{name: array}`, `name` the path of a leaf such as `params.head.kernel`. Leaves that never change
are stored once, in `frozen/`, so a checkpoint of a probe is as small as its head.

Orbax survives a kill at any time; it does not notice a flipped bit, so a checkpoint counts from the moment its
manifest (sha256 of every file) is written, and one that does not match is never used.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from tltrain import places
from tltrain.errors import WeightsError, WorkdirError, foreign_errors, reason_of

logging.getLogger("absl").setLevel(logging.CRITICAL)  # what goes wrong is raised as well, and told in a line

_FROZEN = "frozen"
_ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})  # whoever else is there


class Checkpoints:
    """The checkpoints below `folder`, by step. The best one has the largest `score`, the earliest of equals."""

    def __init__(self, folder: Path, keep: int, frozen: tuple[str, ...]) -> None:
        """Leaves whose name starts with one of `frozen` are taken to be the same at every step.

        Raises:
            WorkdirError: the folder cannot be written.
        """
        self._folder, self._frozen = folder.resolve(), frozen
        policy = AnyPreservationPolicy([LatestN(keep), BestN(get_metric_fn=_rank, n=1)])
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False,
            best_fn=_rank,
            preservation_policy=policy,
            create=False,  # it is there, and Orbax would make it by all processes
            multiprocessing_options=_ALONE,
        )
        with places.writing(self._folder, "check the folder and its disk, or choose another --workdir"):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._sound = self._verify()
            self._closing = contextlib.ExitStack()
            self._named = self._closing.enter_context(places.literal(self._folder))
            self._manager = ocp.CheckpointManager(self._named, options=options)

    def save(self, step: int, state: Any, record: dict[str, Any], score: float) -> None:
        """Stores `state`, a tree of arrays, and `record` (JSON) under `step`; older ones beyond `keep` go.

        Raises:
            WorkdirError: the disk is full or cannot be written; earlier checkpoints stay.
        """
        leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
        frozen = {name for name in leaves if name.startswith(self._frozen)}
        moving = jax.device_get({name: leaf for name, leaf in leaves.items() if name not in frozen})
        with self._saving(step):
            self._check_room(state)
            if frozen and not self._manifest(_FROZEN).exists():
                self._save_frozen(jax.device_get({name: leaves[name] for name in frozen}))
            if step in self._manager.all_steps():  # stopped there before it was evaluated
                self._manifest(str(step)).unlink()
                self._manager.delete(step)
            args = ocp.args.Composite(state=ocp.args.StandardSave(moving), record=ocp.args.JsonSave(record))
            self._manager.save(step, args=args, metrics={"score": score, "step": step}, force=True)
            self._manager.wait_until_finished()
            self._write_manifest(str(step))
        self._sound.add(step)

    def _check_room(self, state):
        """Raises OSError where the disk is too full, of which Orbax, which writes in many threads, tells in as many."""
        each, once = num_bytes(state, self._frozen)
        needed = each + (0 if self._manifest(_FROZEN).exists() else once)
        if needed > shutil.disk_usage(self._folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def _saving(self, step):
        """Turns whatever goes wrong within into a WorkdirError; what threads say of it, then or later, is dropped."""
        before, sys.unraisablehook = sys.unraisablehook, _pass_over
        try:
            yield
        except Exception as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            reason = os.strerror(int(code[1])) if code else reason_of(error)
            raise WorkdirError(
                f"cannot save step {step}; {reason}; at {self._folder}; free space and start again"
            ) from error
        sys.unraisablehook = before

    def _save_frozen(self, leaves):
        with ocp.StandardCheckpointer(multiprocessing_options=_ALONE) as checkpointer:
            checkpointer.save(self._named / _FROZEN, leaves, force=True)
        self._write_manifest(_FROZEN)

    def share_frozen(self, other: "Checkpoints") -> None:
        """Takes the leaves that never change from `other`, of a run with the same ones, without a copy of its files."""
        source = other._folder / _FROZEN
        if not self._manifest(_FROZEN).exists() and source.is_dir():
            with contextlib.suppress(OSError):  # no hard links on this disk: `save` stores them anew
                shutil.copytree(source, self._folder / _FROZEN, copy_function=os.link)
                self._write_manifest(_FROZEN)

    def latest(self) -> int | None:
        """The newest sound step."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The sound step of the highest score, the earliest of equals."""
        return max(self.steps(), key=lambda step: _rank(self._manager.metrics(step)), default=None)

    def rewind(self, step: int) -> None:
        """Forgets what was saved after `step`."""
        for later in [s for s in self._manager.all_steps() if s > step]:
            self._manifest(str(later)).unlink(missing_ok=True)
            self._manager.delete(later)

    def restore(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Every leaf of the state by its name, and the record, of `step`."""
        if step not in self.steps():
            raise WeightsError(f"the checkpoint of step {step} is damaged or gone; at {self._folder}; train again")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(), record=ocp.args.JsonRestore())
        with foreign_errors(WeightsError, f"cannot restore step {step}", f"at {self._folder}; start in a new workdir"):
            restored = self._manager.restore(step, args=args)
            frozen = {}
            if self._manifest(_FROZEN).exists():
                with ocp.StandardCheckpointer(multiprocessing_options=_ALONE) as checkpointer:
                    frozen = checkpointer.restore(self._named / _FROZEN)
        return restored["state"] | frozen, restored["record"]

    def close(self) -> None:
        """Ends the threads of Orbax."""
        self._manager.close()
        self._closing.close()

    def steps(self) -> list[int]:
        """The sound steps."""
        return [step for step in self._manager.all_steps() if step in self._sound]

    def _manifest(self, name: str):
        return self._folder / f"manifest_{name}.json"

    def _write_manifest(self, name: str):
        part = self._folder / f"manifest_{name}.part"
        with part.open("w") as file:
            json.dump(self._hashes(name), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._manifest(name))
        for path in self._folder.glob("manifest_*.json"):
            if not (self._folder / path.stem.removeprefix("manifest_")).is_dir():
                path.unlink()

    def _verify(self) -> set[int]:
        """The steps whose files are those of their manifest; other folders are set aside, all if `frozen/` is one."""
        broken = (self._folder / _FROZEN).is_dir() and not self._is_sound(_FROZEN)
        sound = set()
        for folder in self._folder.iterdir():
            if folder.name.isdigit() and not broken and self._is_sound(folder.name):
                sound.add(int(folder.name))
            elif folder.name.isdigit() or (broken and folder.name == _FROZEN):
                manifest = self._manifest(folder.name)
                if manifest.is_file():
                    folder.rename(folder.with_name(f"damaged_{folder.name}_{os.getpid()}"))
                else:  # a process was killed while it saved
                    shutil.rmtree(folder)
                manifest.unlink(missing_ok=True)
        return sound

    def _is_sound(self, name: str) -> bool:
        try:
            return json.loads(self._manifest(name).read_bytes()) == self._hashes(name)
        except (OSError, ValueError):
            return False

    def _hashes(self, name):
        """sha256 of each file of a checkpoint; the name is part of each path, so none passes for another."""
        files = sorted(path for path in (self._folder / name).rglob("*") if path.is_file())
        return {
            path.relative_to(self._folder.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }


def _pass_over(unraisable):
    """Says nothing of what is left of a save that failed, and all of what else goes wrong."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def num_bytes(state: Any, frozen: tuple[str, ...]) -> tuple[int, int]:
    """What a checkpoint of `state`, arrays or shapes, takes; and what is stored once, the leaves of `frozen`."""
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    sizes = {name: leaf.size * leaf.dtype.itemsize for name, leaf in leaves.items()}
    once = sum(size for name, size in sizes.items() if name.startswith(frozen))
    return sum(sizes.values()) - once, once


def with_leaves(tree: Any, leaves: dict[str, np.ndarray]) -> Any:
    """`tree` with its leaves taken from `leaves` by name.

    Raises:
        WeightsError: names or shapes differ.
    """

    def take(path, like):
        name = _name(path)
        if name not in leaves or leaves[name].shape != like.shape:
            raise WeightsError(f"the checkpoint does not fit the model; at {name}; start in a new workdir")
        return np.asarray(leaves[name], like.dtype)

    return jax.tree_util.tree_map_with_path(take, tree)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _rank(metrics):
    return (metrics["score"], -metrics["step"])
