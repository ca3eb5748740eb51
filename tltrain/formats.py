"""The forms of what is kept on disk: numbers, each raised where a reader of the form before would misread it."""

from tltrain.errors import WorkdirError

WORKDIR = 2  # identity.json, checkpoints, predictions.jsonl, report.json; 1: of tltrain 0.1, images of one class alone
STORE = 4  # stored features; those of another form are not looked at, and `tltrain.features --clear` frees them


class OtherFormError(WorkdirError):
    """What is on disk is of another form, so of another version of tltrain."""


def check_workdir(content: dict, place: object) -> None:
    """Raises OtherFormError where `content`, a record of the run in `place`, is of another form than `WORKDIR`."""
    if (found := content.get("format", 1)) != WORKDIR:
        written = "an earlier" if found < WORKDIR else "a later"
        raise OtherFormError(
            f"{place} is a run of {written} version of tltrain, of form {found}; this version reads and writes form "
            f"{WORKDIR}; use that version, or choose another --workdir and run it again"
        )
