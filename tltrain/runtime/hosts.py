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
from tltrain.runtime import exchange
from tltrain.runtime.watch import SILENT_SECONDS, Watch

Value = TypeVar("Value")

_START_SECONDS = 60  # in which all processes have to come
_calls = itertools.count()
_told: list[str] = []  # keys of values of the writer that others may still read
_is_asked = False  # whether the writer is at something that others wait for
_watch: Watch | None = None


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Makes this process one of several, where `srun` or `mpirun` started several or the arguments say so.

    Args:
        coordinator: `HOST:PORT` at which process 0 listens; "auto": jax asks the environment whatever it is, as on a
            TPU pod or in Kubernetes; "": it does where one of the two launchers is seen.
        num_processes: of the job, None where the environment knows.
        process_id: of this one, from 0, None where the environment knows.

    Raises:
        ConfigError: arguments and environment name no job, or Slurm gave several tasks and nothing started them.
        HostError: the processes did not find each other.
    """
    global _watch
    if not coordinator and num_processes is None and process_id is None and not _is_launched():
        return
    given = (coordinator not in ("", "auto"), num_processes is not None, process_id is not None)
    if any(given) and not (all(given) and ":" in coordinator):
        raise ConfigError("--coordinator=HOST:PORT, --num_processes and --process_id belong together; give all three")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `signals`
    try:
        jax.distributed.initialize(
            coordinator if all(given) else None,
            num_processes,
            process_id,
            _local_devices(),
            "deactivate" if all(given) else None,  # nor is the environment asked what is known
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=10 * SILENT_SECONDS,  # `Watch` ends a job earlier, and says why
        )
    except ValueError as error:
        raise ConfigError(
            f"no job that jax knows; {reason_of(error)}; give --coordinator=HOST:PORT, --num_processes and --process_id"
        ) from error
    except Exception as error:  # whatever jax makes of an environment, and of an address
        where = f"at {coordinator}" if all(given) else "where the environment says"
        raise HostError(f"the processes did not find each other; {where}; {reason_of(error)}") from error
    if count() > 1:
        _watch = Watch(distributed.global_state.client, index(), count())
        own = {"jax": jax.__version__, "code of tltrain": _code(), "devices of a process": jax.local_device_count()}
        agree(own, lambda first: [f"{key}: {first[key]} -> {own[key]}" for key in own if first[key] != own[key]])


def _is_launched():
    step, tasks = os.environ.get("SLURM_STEP_NUM_TASKS"), os.environ.get("SLURM_NTASKS", "1")
    if step is None and "SLURM_JOB_ID" in os.environ and int(tasks) > 1:
        raise ConfigError(f"Slurm gave {tasks} tasks, and this is none of them; start it by srun, or ask for one task")
    return int(step or 1) > 1 or int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1


def _local_devices():
    """All GPUs of the node, where Slurm runs one task on it: jax would take the first alone (jax issue 16788)."""
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    per_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]
    return list(range(len(gpus))) if gpus and per_node == "1" else None


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
        if raised is not None:
            kind, line = raised
            raise next((one for one in _kinds(TltrainError) if one.__name__ == kind), TltrainError)(line)
        return made
    _is_asked = True
    try:
        made, failed = function(*arguments), None
    except TltrainError as error:
        made, failed = None, error
    finally:
        _is_asked = False
    exchange.put(key, [made, None if failed is None else [type(failed).__name__, str(failed)]])
    _told.append(key)
    if failed is not None:
        raise failed
    return made


def writer_first(function: Callable[[], Value]) -> Value:
    """What `function()` returns in this process; others begin when the writer is through."""
    made: list[Value] = []
    on_writer(lambda: made.append(function()))
    return made[0] if made else function()


class _Only:
    """Stands for an object of the writer: methods run there, and all get what they return or raise.

    To close it asks nobody, for a process that failed alone does that too.
    """

    def __init__(self, make: Callable[[], Any], known: dict[str, Any]) -> None:
        vars(self).update(known)
        self._made: list[Any] = []
        on_writer(lambda: self._made.append(make()))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments, **options):
            return on_writer(lambda: getattr(self._made[0], name)(*arguments, **options))

        return call

    def close(self) -> None:
        for one in self._made:
            one.close()


def only(make: Callable[[], Value], **known: Any) -> Value:
    """What `make` makes, on the writer alone; elsewhere all but the attributes `known` is asked there, see `_Only`."""
    made: Any = make() if count() == 1 else _Only(make, known)
    return made


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
