"""What starts the processes of a job, and how they find each other: flags, Slurm, Open MPI, or what jax knows."""

import os
import signal
import socket

import jax

from tltrain.errors import ConfigError, HostError, reason_of
from tltrain.runtime.watch import SILENT_SECONDS, end_on_abort

_START_SECONDS = 60  # in which all processes have to come


def connect(coordinator: str, num_processes: int | None, process_id: int | None) -> bool:
    """Finds the other processes, where `srun` or `mpirun` started several or the arguments say so; whether they do.

    Args:
        coordinator: `HOST:PORT` at which process 0 listens; "auto": jax asks the environment whatever it is, as on a
            TPU pod or in Kubernetes; "": it does where one of the two launchers is seen.
        num_processes: of the job, None where the environment knows.
        process_id: of this one, from 0, None where the environment knows.

    Raises:
        ConfigError: arguments and environment name no job, or Slurm gave several tasks and nothing started them.
        HostError: the processes did not find each other.
    """
    if not coordinator and num_processes is None and process_id is None and not _is_launched():
        return False
    given = (coordinator not in ("", "auto"), num_processes is not None, process_id is not None)
    if any(given) and not (all(given) and ":" in coordinator):
        raise ConfigError("--coordinator=HOST:PORT, --num_processes and --process_id belong together; give all three")
    if all(given):
        _check_address(coordinator, process_id == 0)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `signals`
    where = f"at {coordinator}" if all(given) else "where the environment says"
    end_on_abort(f"the processes did not find each other; {where}; not all came within {_START_SECONDS} s")
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
        raise HostError(f"the processes did not find each other; {where}; {reason_of(error)}") from error
    finally:
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
    return True


def _check_address(coordinator, is_first):
    """Raises where the port of `coordinator` is none, or the first process, which listens, finds another there."""
    port = coordinator.rpartition(":")[2]
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(
            f"--coordinator={coordinator}: {port!r} is no port; on the command line; give 1 to {2**16 - 1}"
        )
    if not is_first:
        return
    both = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if both else socket.AF_INET) as tried:  # where it fails, jax may crash
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if both:
            tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            tried.bind(("", int(port)))
        except OSError as error:
            raise HostError(
                f"process 0 cannot listen at {coordinator}; {reason_of(error)}; give a port that no other program has, "
                "as a run that is still there"
            ) from error


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
