"""The forms of what is kept on disk: numbers, each raised where a reader of the form before would misread it."""

from tltrain.errors import WorkdirError

WORKDIR = 2  # identity.json, checkpoints, predictions.jsonl, report.json
STORE = 5  # stored features; those of another form are not looked at, and `tltrain.features --clear` frees them


_VERSIONS = {1: "0.1"}  # that wrote an earlier form of a workdir


class OtherFormError(WorkdirError):
    """What is on disk is of another form, so of another version of tltrain."""


def check_workdir(content: dict, place: object) -> None:
    """Raises OtherFormError where `content`, a record of the run in `place`, is of another form than `WORKDIR`."""
    if (found := content.get("format", 1)) != WORKDIR:
        version = _VERSIONS.get(found, "of a later version")
        raise OtherFormError(
            f"{place} is a run of tltrain {version}, of form {found}; this version reads and writes form {WORKDIR}; "
            "use that version, or choose another --workdir and run it again"
        )
