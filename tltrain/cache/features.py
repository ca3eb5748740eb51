"""The feature cache: what a frozen prefix makes of each example is computed once, stored, and read back by every run.

A store is named by a hash of all that its numbers depend on: the frozen variables themselves, the way of the
examples to them, and the examples. `python -m tltrain.features --list` shows what is stored, `--clear` frees it.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from tltrain import formats, places
from tltrain.cache import extraction, sharing, store
from tltrain.cache.shards import DamagedError
from tltrain.data import pipeline
from tltrain.data.split import Split
from tltrain.errors import WorkdirError
from tltrain.models.classifier import Classifier
from tltrain.places import cache_dir
from tltrain.runtime import console, hosts, pace, signals
from tltrain.training.setup import Setup


class Wanted(NamedTuple):
    """A store that a phase wants: activations before stage `cut` of every example of `split`.

    `view` is None for examples as they are; else it counts those varied at random, drawn as those of epoch `view` are.
    """

    split: Split
    cut: int
    view: int | None = None


def directory(config: ConfigDict) -> Path:
    """Where the stores of `config` lie."""
    return Path(config.features.dir) if config.features.dir else cache_dir() / "features"


def ensure(
    setup: Setup,
    variables: dict,
    wanted: Wanted,
    base: tuple[int, store.Store] | None,
    corrupt: pipeline.Corrupt,
    progress: extraction.Progress,
    task: tuple[int, int] | None = None,
) -> store.Store | None:
    """The store that is wanted, computed as far as it is not there yet; None where others have yet to do their part.

    Args:
        setup: of the run.
        variables: `params` and `batch_stats` that hold the frozen stages.
        wanted: what is stored.
        base: an earlier cut and the store of the same rows there, to start from; or None: from the examples.
        corrupt: collects unreadable examples.
        progress: entered once all is compiled, with a title, the number of examples and how many of them are done
            already; yields what is told how many were done since, and says whether to stop.
        task: which of several this is that know nothing of each other, see `extraction.write`; None: it is none.

    Raises:
        DataError: too many unreadable examples.
        TerminatedError: it was to stop.
        space.NoSpaceError: the disk is too full; the cuts that would fit are named.
        WorkdirError: the folder cannot be written.
    """
    facts = _facts(setup, variables, wanted)
    folder = location(setup, variables, wanted)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        count, leads = len(wanted.split.ids), sharing.leads(folder.parent)
        with _locked(folder.with_suffix(".lock"), shared=task is not None) if leads else contextlib.nullcontext():
            if not all(hosts.gather("stored", not leads or _stored(folder, count) is not None)):
                start, before = base or (0, None)
                origin = extraction.Origin(wanted.split, wanted.view, start, before, corrupt)
                title = f"Computing the {place(setup.model, wanted.cut)}, {wanted.split.expression}"
                title += f", part {task[0] + 1} of {task[1]}" if task else ""
                extraction.write(setup, variables, origin, wanted.cut, folder, title, progress, facts, task)
            stored = _stored(folder, count)
            assert stored or task, "it was written just now"
            if stored is None:
                return None
    except (OSError, ValueError) as error:
        raise WorkdirError(
            f"cannot store features; {error}; at {folder.parent}; set features.dir, or features.enabled = 'off'"
        ) from error
    for i in np.flatnonzero(~stored.readable):
        corrupt.add(int(i), "unreadable when its features were computed")
    corrupt.check()
    return stored


def location(setup: Setup, variables: dict, wanted: Wanted) -> Path:
    """The folder of the store that `ensure` gives, be it there or not."""
    return directory(setup.config) / _name(_facts(setup, variables, wanted))


def _facts(setup, variables, wanted) -> dict[str, Any]:
    """What the numbers of a store depend on, and in words where they come from."""
    config, model = setup.config, setup.model
    arrays = hashlib.sha256()
    for stage in model.backbone.stages[: wanted.cut]:
        for collection in ("params", "batch_stats"):
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables[collection]["backbone"].get(stage, {})):
                arrays.update(f"{stage}{jax.tree_util.keystr(path)}{leaf.shape}".encode())
                arrays.update(np.asarray(leaf).tobytes())
    return {
        "format": formats.STORE,
        "source": config.data.source,
        "split": wanted.split.expression,
        "examples": wanted.split.fingerprint,
        "backbone": config.model.backbone,
        "arrays": arrays.hexdigest(),
        "place": place(model, wanted.cut),
        **model.backbone.facts(),
        **wanted.split.kind.facts(wanted.view),
        "dtype": config.model.dtype,
        "stored_dtype": config.features.dtype,
    }


def _name(facts: dict[str, Any]) -> str:
    others = ("source", "split", "array", "rows_of_shard")  # which `examples` and the files say
    decisive = {key: value for key, value in facts.items() if key not in others}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]


def _stored(folder: Path, num_examples: int) -> store.Store | None:
    """The store at `folder`, whose name is the hash of what it holds; None where there is none, or no more."""
    if not folder.is_dir():
        return None
    try:
        stored = store.Store(folder)
        if _name(stored.facts) == folder.name and len(stored.readable) == num_examples:
            return stored
    except DamagedError:
        pass
    console.warn(f"stored features were damaged; at {folder}; they are computed again")
    shutil.rmtree(folder)
    return None


def place(model: Classifier, cut: int) -> str:
    """The cut in words."""
    stages = model.backbone.stages
    return "pooled features" if cut == len(stages) else f"activations before {stages[cut]}"


@contextlib.contextmanager
def _locked(path: Path, shared: bool = False) -> Iterator[None]:
    with path.open("w+") as file:  # over NFS a lock that is shared is one for reading
        try:
            places.lock(file, shared=shared)
        except BlockingIOError:
            console.say("Another process computes the same features; waiting for it ...")
            with pace.at(pace.OUTSIDE), signals.abandonable("waiting"):
                places.lock(file, wait=True, shared=shared)
        yield
