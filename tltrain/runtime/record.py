"""The JSON files of a workdir. The last one written, `report.json`, holds the sha256 of itself and of the others."""

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tltrain import formats
from tltrain.errors import WorkdirError

# what a finished run is read back from, beside its checkpoints
PRETRAINED = "pretrained"  # folder of the small files of the weights that a model is made and fed by
PARTS: tuple[str, ...] = ("config.json", "environment.json", "class_names.json", "identity.json", "predictions.jsonl")
PARTS += (f"{PRETRAINED}/config.json", f"{PRETRAINED}/tokenizer.json")
LOG = "metrics.jsonl"  # which nothing is read back from


def read_json(path: Path) -> Any:
    """The content of a JSON file, None where it is not there.

    Raises:
        WorkdirError: it cannot be read.
    """
    try:
        return json.loads(path.read_bytes()) if path.exists() else None
    except (OSError, ValueError, RecursionError) as error:
        raise WorkdirError(f"cannot read {path}; {error}; remove it or choose another --workdir") from error


def json_of(value: Any, indent: int | None = None) -> str:
    """`value` as JSON, which knows no NaN and no infinity: they become null."""
    return json.dumps(_without_nan(value), indent=indent)


def sealed(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The content of `report.json` of the run in `folder`: `report` with the digests that `read_report` checks."""
    files = {name: _sha256(folder / name) for name in (*PARTS, LOG) if (folder / name).exists()}
    return with_digest({"format": formats.WORKDIR} | report | {"files": files})


def read_report(folder: Path, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """The content of `report.json` of the finished run in `folder`.

    Raises:
        WorkdirError: there is none, or it or one of the `parts` is not what the run wrote.
    """
    path = folder / "report.json"
    if not path.exists():
        what = "has no finished run" if (folder / "config.json").exists() else "is no workdir"
        raise WorkdirError(f"{folder} {what}; no report.json; give the workdir of a run that ended with a result")
    remedy = "put it back, or run the command of the run again, which writes its record anew"
    report: Any = None
    with contextlib.suppress(WorkdirError):
        report = read_json(path)
    if not has_digest(report):
        raise WorkdirError(f"{path} is damaged; its digest does not match; {remedy}")
    formats.check_workdir(report, folder)
    for name in parts:
        if is_changed(folder, name, report):
            raise WorkdirError(f"{folder / name} is not what the run wrote; its digest does not match; {remedy}")
    return report


def is_changed(folder: Path, name: str, report: dict[str, Any]) -> bool:
    """Whether the file `name` of the run in `folder` is not the one that its `report` was written with."""
    return report["files"].get(name) != _sha256(folder / name)


def with_digest(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with its own sha256 under that name."""
    return content | {"sha256": _digest(content)}


def has_digest(content: Any) -> bool:
    """Whether `content` is what `with_digest` made."""
    return isinstance(content, dict) and content.get("sha256") == _digest(content)


def _digest(content):
    content = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(json.loads(json_of(content)), sort_keys=True).encode()).hexdigest()


def _sha256(path):
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
