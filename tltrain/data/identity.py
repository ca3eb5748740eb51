"""What a run is made of, so that a later process notices where it is given something else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tltrain.data.split import Data, Split
from tltrain.errors import DataError, WeightsError

_NAMED = 3  # files that a line names
_DIGITS = 16  # of a file's sha256, in hex, enough to tell what changed


def of(data: Data, weights: str | None) -> dict[str, Any]:
    """The content of `identity.json`: class names in order, the files of each split, the sha256 of the weight file."""
    splits = {
        name: {
            "expression": split.expression,
            "num_examples": len(split.ids),
            "fingerprint": split.fingerprint,
            "files": {file: sha256.hex()[:_DIGITS] for file, sha256 in split.files().items()},
        }
        for name, split in data.splits.items()
    }
    return {"class_names": list(data.class_names), "splits": splits, "weights": weights}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words what of `now`, as by `of`, is not what it was; [] where all is."""
    found = []
    if before["class_names"] != now["class_names"]:
        gone = [name for name in before["class_names"] if name not in now["class_names"]]
        new = [name for name in now["class_names"] if name not in before["class_names"]]
        moved = f"{_some(gone) or 'none'} gone, {_some(new) or 'none'} new" if gone or new else "in another order"
        found.append(f"classes: {moved}")
    for name, split in now["splits"].items():
        was = before["splits"].get(name)
        if was is None or (was["fingerprint"], was["files"]) != (split["fingerprint"], split["files"]):
            found += [f"{name}: {line}" for line in _files(was["files"] if was else {}, split["files"])]
    if before["weights"] != now["weights"]:
        found.append(f"weights: sha256 {before['weights']} -> {now['weights']}")
    return found


def check(before: Mapping[str, Any] | None, now: Mapping[str, Any], workdir: Path) -> None:
    """Compares what the run in `workdir` was made of, where there is one, with what it is made of `now`.

    Raises:
        DataError: it is a run on other data; what differs is named.
        WeightsError: it began with other weights.
    """
    if before is not None and (changed := differences(before, now)):
        kind = WeightsError if all(line.startswith("weights") for line in changed) else DataError
        raise kind(
            f"the workdir holds a run on other inputs; {workdir}: {'; '.join(changed)}; "
            "put them back as they were, or choose another --workdir"
        )


def changes(before: Mapping[str, Any], split: Split) -> list[str]:
    """In words what of the files of `split`, of the data of the run, is not what it was in the run."""
    now = {file: sha256.hex()[:_DIGITS] for file, sha256 in split.files().items()}
    for was in before["splits"].values():
        if was["expression"] == split.expression:
            return [] if was["files"] == now else _files(was["files"], now)
    known = {file: sha256 for was in before["splits"].values() for file, sha256 in was["files"].items() if file in now}
    return [] if known.items() <= now.items() else _files(known, {file: now[file] for file in known})


def _files(before, now):
    added, gone = sorted(now.keys() - before.keys()), sorted(before.keys() - now.keys())
    changed = sorted(name for name in now.keys() & before.keys() if now[name] != before[name])
    groups = {"added": added, "gone": gone, "changed": changed}
    return [f"{len(names)} {what} ({_some(names)})" for what, names in groups.items() if names] or ["another order"]


def _some(names):
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
