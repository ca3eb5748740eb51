"""What a check says: a problem, which would stop a run or spoil its numbers, an advice, or that all is fine."""

from typing import NamedTuple

from tltrain.errors import TltrainError

LEVELS = ("problem", "advice", "fine")


class Finding(NamedTuple):
    """One line of a section; `exit_code` is that of the error a problem is or would become, else 0."""

    level: str
    text: str
    exit_code: int = 0


class NotThereYetError(TltrainError):
    """A run would fetch it first, so it cannot be looked at: no fault."""

    exit_code = 0


def problem(text: str, exit_code: int) -> Finding:
    """What would stop the run, or spoil its numbers."""
    return Finding("problem", text, exit_code)


def advice(text: str) -> Finding:
    """What the run would be better with."""
    return Finding("advice", text)


def fine(text: str) -> Finding:
    """What was looked at and is as it should be."""
    return Finding("fine", text)


def of_error(error: TltrainError) -> Finding:
    """What `error` is to the doctor."""
    return problem(str(error), error.exit_code) if error.exit_code else advice(str(error))
