"""The errors a user can cause or meet, each with the exit code of its kind; those of libraries become them."""

import contextlib
from collections.abc import Iterator

_LONGEST_REASON = 120  # characters


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


class HostError(TltrainError):
    """Another process of the same job is missing."""

    exit_code = 7


class TerminatedError(TltrainError):
    """The process was asked to stop (SIGTERM or SIGINT) and has saved its state."""

    exit_code = 143


def reason_of(error: BaseException) -> str:
    """What an error of foreign code says, on one line of at most 120 printable characters; its class where it is mute.

    Never raises.
    """
    try:
        text = getattr(error, "strerror", None) or str(error)
    except Exception:
        text = ""
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 10 * _LONGEST_REASON]).split())
    text = text or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 4]} ..."


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
        raise kind(f"{what}; {reason_of(error)}; {remedy}") from error
