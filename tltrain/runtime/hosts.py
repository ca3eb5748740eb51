"""Several processes that train one model: who they are, and what they tell each other.

The engine is `jax.distributed`; values of the host go through its key-value service, which needs no device. All
processes do the same calls in the same order. Process 0 is the writer: it alone holds the record of the run. A process
that is alone asks nothing of all this.
"""

import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax._src import distributed

import tltrain
from tltrain.errors import ConfigError, HostError, TltrainError, reason_of
from tltrain.runtime import exchange, launchers, pace
from tltrain.runtime.watch import SILENT_SECONDS, Watch

Value = TypeVar("Value")

_calls = itertools.count()
_told: list[str] = []  # keys of values of the writer that others may still read
_is_asked = False  # whether the writer is at something that others wait for
_watch: Watch | None = None


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Makes this process one of several, where there are; arguments and errors are those of `launchers.connect`.

    Raises:
        ConfigError: they differ in code or devices.
    """
    global _watch
    if launchers.connect(coordinator, num_processes, process_id) and count() > 1:
        _watch = Watch(distributed.global_state.client, index(), count())
        own = {"jax": jax.__version__, "code of tltrain": _code(), "devices of a process": jax.local_device_count()}
        agree(own, lambda first: [f"{key}: {first[key]} -> {own[key]}" for key in own if first[key] != own[key]])


def leave(code: int) -> None:
    """Ends this process with the exit code `code` where there are others, which are told; returns where it is alone."""
    if _watch is not None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        _watch.end(code)
        os._exit(code)  # an end of jax's own would wait for processes that are gone


def blame(error: Exception) -> HostError:
    """What stands for an `error` of devices or service; where a process is missing this one ends meanwhile."""
    if _watch is not None:
        _watch.suspect()
    time.sleep(SILENT_SECONDS)  # in which `Watch` names the process that is missing, and ends this one
    return HostError(f"the processes lost each other; {reason_of(error)}; the same command goes on")


def count() -> int:
    """The number of processes."""
    return distributed.global_state.num_processes or 1


def index() -> int:
    """The number of this process."""
    return distributed.global_state.process_id or 0


def is_writer() -> bool:
    """Whether this process holds the record of the run."""
    return index() == 0


def stop_between(asked: bool) -> bool:
    """Whether all processes stop before another training step begins; `asked`: this one was asked to stop."""
    return asked if _watch is None else _watch.stop_between(asked)


def stop_at_step(asked: bool) -> bool:
    """Called after each training step was begun: whether all processes stop after this one."""
    return asked if _watch is None else _watch.stop_at_step(asked)


def collect(name: str, value: Any) -> list[Any]:
    """What all processes give, to the writer; others get an empty list, and wait for nobody.

    Values are trees of dicts and lists of JSON values and arrays.
    """
    if count() == 1:
        return [value]
    key = _key(name)
    if not is_writer():
        exchange.put(f"{key}/{index()}", value)
        return []
    found = [value, *(exchange.get(f"{key}/{i}") for i in range(1, count()))]
    for old in (key, *_told):  # all have come here, so all have read what they were told
        exchange.delete(old)
    _told.clear()
    return found


def gather(name: str, value: Any) -> list[Any]:
    """As `collect`, to all, who wait for all."""
    found = collect(name, value)
    return on_writer(lambda: found)


def on_writer(function: Callable[..., Value], *arguments: Any) -> Value:
    """What `function(*arguments)` returns, see `collect`, or raises of `TltrainError`; it runs on the writer alone."""
    global _is_asked
    if count() == 1 or _is_asked:
        return function(*arguments)
    key = _key("writer")
    if not is_writer():
        made, raised = exchange.get(key)
        _raise(raised)
        return made
    _is_asked = True
    try:
        with pace.at(pace.OTHER):
            made, failed = function(*arguments), None
    except TltrainError as error:
        made, failed = None, error
    finally:
        _is_asked = False
    exchange.put(key, [made, _described(failed)])
    _told.append(key)
    if failed is not None:
        raise failed
    return made


def in_turn(first: bool, function: Callable[[], Value]) -> Value:
    """What `function()` returns in this process; where `first` it runs before it does elsewhere.

    What it raises there of `TltrainError` all raise.
    """
    if count() == 1:
        return function()
    made, failed = [], None
    try:
        made = [function()] if first else []
    except TltrainError as error:
        failed = error
    for raised in gather("turn", _described(failed)):
        _raise(raised)
    return made[0] if first else function()


def passed(giver: int, make: Callable[[], Value], takes: bool) -> Value | None:
    """What `make()` returns in process `giver`, see `collect`, where this one `takes` it."""
    key = _key("passed")
    if index() == giver:
        exchange.put(key, make())
    found = exchange.get(key) if takes else None
    gather("taken", None)
    if index() == giver:
        exchange.delete(key)
    return found


def _described(error):
    return None if error is None else [type(error).__name__, str(error)]


def _raise(described):
    if described is not None:
        name, line = described
        raise next((kind for kind in _kinds(TltrainError) if kind.__name__ == name), TltrainError)(line)


def agree(value: Any, differences: Callable[[Any], list[str]]) -> None:
    """Raises ConfigError in all processes where `value` (JSON) of one is another than that of the writer.

    `differences(first)` says in words what of `value` is not what it is in `first`.
    """
    if len(set(gather("digest", hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()))) == 1:
        return
    first = on_writer(lambda: value)
    for i, found in enumerate(gather("differences", differences(first))):
        if found:
            raise ConfigError(
                f"processes differ; process {i} from process 0: {'; '.join(found)}; start all with the same code, "
                "config and data"
            )


def _code():
    """A hash of the package."""
    folder, found = Path(tltrain.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return found.hexdigest()[:12]


def _kinds(kind):
    return [kind, *(each for below in kind.__subclasses__() for each in _kinds(below))]


def _key(name):
    return f"tltrain/values/{next(_calls)}/{name}"
