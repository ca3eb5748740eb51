"""What every verb does around its work: errors as one line and an exit code, signals, other processes."""

import argparse
import contextlib
import errno
import gc
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jax

from tltrain import places
from tltrain.errors import TerminatedError, TltrainError, WorkdirError, reason_of
from tltrain.runtime import command_line, console, hosts, parallel, signals
from tltrain.runtime.process import Process

_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_OF_PATH = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


def run(parser: command_line.Parser, argv: list[str], work: Callable[[argparse.Namespace, Process], int]) -> int:
    """Runs `work(arguments, process)` of a verb and returns its exit code, or that of the error it raises.

    Where it is done by several processes together this one ends here, and the others know.

    `process.stop()` is true once SIGTERM or SIGINT came, see `signals`. `--debug` in `argv` shows the traceback of an
    error.
    """
    if not gc.get_freeze_count():
        gc.freeze()  # the modules stay to the end: looking for garbage among them is a tenth of a short run
    try:
        code = _run(parser, argv, work)
    except BaseException as error:
        if hosts.count() > 1 and not isinstance(error, SystemExit):
            traceback.print_exc()
            hosts.leave(1)
        raise
    hosts.leave(code)
    return code


def _run(parser, argv, work):
    try:
        with signals.noted() as stop:
            arguments = command_line.read(parser, argv[1:])
            if "coordinator" in arguments:
                with signals.abandonable("waiting for the other processes"):
                    hosts.join(arguments.coordinator, arguments.num_processes, arguments.process_id)
            parallel.cache_compilations(places.cache_dir() / "xla")
            with contextlib.nullcontext() if hosts.is_writer() else console.into(Path(os.devnull)):
                return work(arguments, Process(asked=stop))
    except signals.Abandoned as stopped:
        console.warn(str(stopped))
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        hosts.leave(TerminatedError.exit_code)
        os._exit(TerminatedError.exit_code)  # XLA may compile yet in a thread, which would crash as Python ends
    except (TltrainError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (*_OF_DISK, *_OF_PATH):
            raise
        if "--debug" in argv:
            traceback.print_exc()
        return _told(error)
    except jax.errors.JaxRuntimeError as error:
        if hosts.count() == 1:
            raise
        return _told(hosts.blame(error))


def _told(error: Exception) -> int:
    """Says `error` in a line and returns its exit code; one of a full disk may have been met by the output itself."""
    if isinstance(error, TltrainError):
        if hosts.is_writer() or not isinstance(error, TerminatedError):  # of all that stopped one says so
            console.warn(str(error))
        return error.exit_code
    place = getattr(error, "filename", None) or "while output was written"
    if isinstance(error, OSError) and error.errno in _OF_PATH:
        console.warn(f"{reason_of(error)}; {place}; check the path and its permissions")
        return WorkdirError.exit_code
    with contextlib.suppress(OSError):  # standard error may lie on the same disk
        console.warn(f"{reason_of(error)}; {place}; free space or check the disk, and start again")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what standard output holds yet would fail again at the end
    return WorkdirError.exit_code
