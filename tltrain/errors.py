"""The errors a user can cause or meet, each with the exit code of its kind; those of libraries become them."""

import contextlib
from collections.abc import Iterator


class TltrainError(Exception):
    """One line that says what happened, where, and what to do; ends the process with `exit_code`."""

    exit_code = 1


class ConfigError(TltrainError):
    """The config or the command line is wrong."""

    exit_code = 2


class DivergedError(TltrainError):
    """A loss is NaN or infinite."""

    exit_code = 3


class DataError(TltrainError):
    """The data is missing, corrupt or inconsistent."""

    exit_code = 4


class WeightsError(TltrainError):
    """A weight file or a checkpoint cannot be used."""

    exit_code = 5


class WorkdirError(TltrainError):
    """The disk or the workdir cannot be used."""

    exit_code = 6


class TerminatedError(TltrainError):
    """The process was asked to stop (SIGTERM or SIGINT) and has saved its state."""

    exit_code = 143


@contextlib.contextmanager
def foreign_errors(kind: type[TltrainError], what: str, remedy: str) -> Iterator[None]:
    """Turns whatever is raised within into one line of `kind`, but for errors that are ours already.

    Libraries do not say what they raise for bytes that are damaged, and change it: so it is any exception.
    """
    try:
        yield
    except TltrainError:
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{what}; {why}; {remedy}") from error
