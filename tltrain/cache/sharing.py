"""Which processes see the same folder: those that do share a store, others have one each and copy what they lack."""

import contextlib
import functools
import uuid
from collections.abc import Sequence
from pathlib import Path

from tltrain.cache.store import Writer
from tltrain.runtime import hosts

_NAME = ".name"  # file of a folder: what no other has in it


@functools.cache
def _leaders(folder: Path) -> list[int]:
    """For each process the first one that sees the same `folder`; found out once."""
    if hosts.count() == 1:
        return [0]
    path = folder / _NAME
    with contextlib.suppress(FileExistsError), path.open("x") as file:
        file.write(uuid.uuid4().hex)
    hosts.gather("named", None)
    folders = hosts.gather("folder", [path.read_text(), path.stat().st_ino])  # a copy of a folder has another inode
    return [folders.index(one) for one in folders]


def leads(folder: Path) -> bool:
    """Whether this process is the first of those that see `folder`, which is there: it makes, names and removes stores.

    Raises:
        OSError: nothing can be written there.
    """
    return _leaders(folder)[hosts.index()] == hosts.index()


def copy(folder: Path, writer: Writer, computed: Sequence[int], held: Sequence[Sequence[int]]) -> None:
    """Brings the shards of a store in `folder` to where they are not seen.

    Args:
        folder: of all stores.
        writer: of the store.
        computed: shards that were computed just now, by the processes in turn.
        held: the others, those that each process held before.
    """
    leaders = _leaders(folder)
    if len(set(leaders)) == 1:
        return
    by = {shard: i % hosts.count() for i, shard in enumerate(computed)}
    for shard in range(writer.num_shards):
        holders = {i for i, shards in enumerate(held) if shard in shards} or {by[shard]}
        lacking = set(leaders) - {leaders[i] for i in holders}
        if not lacking:
            continue
        found = hosts.passed(min(holders), functools.partial(writer.read, shard), hosts.index() in lacking)
        if found is not None:
            writer.copy(shard, found)
    writer.flush()
