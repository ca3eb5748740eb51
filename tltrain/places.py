"""Where a user says that something lies: paths of this machine, `~` among them; that they can be written and locked.

Own code rather than platformdirs, which has the same cache folder on Linux and knows no `$TLTRAIN_CACHE`, and filelock,
which asks again and again where `flock` waits.
"""

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tltrain.errors import ConfigError, WorkdirError, reason_of

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# the keys of a config that hold a path, each with the form of values that do: what begins them, and the path
_KEYS = {
    "data.source": re.compile("(folder:|table:)(.*)", re.DOTALL),
    "data.data_dir": re.compile("()(.+)", re.DOTALL),
    "model.weights": re.compile("(?!pretrained$|imagenet$|random$)((?:random:)?+)(?!hf:)(.+)", re.DOTALL),
    "features.dir": re.compile("()(.+)", re.DOTALL),
}


def local(text: str, given: str) -> Path:
    """The path `text`, its `~` expanded; `given` says where it was named.

    Raises:
        ConfigError: it is a remote one, or there is no such home folder.
    """
    _refuse_remote(text, given)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"no home folder for {text}; {given}; set $HOME, or give the whole path") from error


def _refuse_remote(text, given):
    if _REMOTE.match(text):
        raise ConfigError(
            f"remote paths are not supported: {text}; {given}; mount it as a folder, or copy it to a disk of this "
            "machine, and give that path"
        )


def cache_dir() -> Path:
    """Where downloads are kept: `$TLTRAIN_CACHE`, else `~/.cache/tltrain` (or below `$XDG_CACHE_HOME`).

    Raises:
        ConfigError: that is a remote path.
        WorkdirError: there is no such home folder.
    """
    if named := os.environ.get("TLTRAIN_CACHE"):
        return _expanded(named)
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tltrain"


def _expanded(place):
    _refuse_remote(place, "by $TLTRAIN_CACHE or $XDG_CACHE_HOME")
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise WorkdirError(f"no home folder; for what is kept, {place}; set $HOME or $TLTRAIN_CACHE") from error


def absolute(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The paths of `flat`, a flat config, by key, as they mean the same from every folder; links stay as named."""
    made = {}
    for key, form in _KEYS.items():
        value = flat.get(key)
        if isinstance(value, str) and (found := form.fullmatch(value)):
            made[key] = f"{found[1]}{local(found[2], f'{key} of the config').absolute()}"
    return made


@contextlib.contextmanager
def literal(folder: Path) -> Iterator[Path]:
    """`folder` under a name that no library can take for a pattern, or its own where that is none."""
    if not re.search(r"[\[\]*?\\]", str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tltrain_") as made:
        link = Path(made) / "folder"
        link.symlink_to(folder)
        yield link


@contextlib.contextmanager
def writing(what: Path | str, remedy: str) -> Iterator[None]:
    """Turns an error of the disk within into a WorkdirError that names `what`."""
    try:
        yield
    except OSError as error:
        raise WorkdirError(f"cannot write {what}; {reason_of(error)}; {remedy}") from error


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes lines of text to the file `path`; raises WorkdirError where it cannot."""
    try:
        with path.open("w", encoding="utf-8", errors="surrogateescape") as file:  # a name of bytes as these bytes
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise WorkdirError(f"cannot write {path}; {error.strerror}; give another --output") from error


def lock(file: IO, wait: bool = False, shared: bool = False) -> None:
    """Takes the lock of the open `file` for this process alone, or for all that share it, until the file is closed.

    Raises:
        BlockingIOError: another process has it, and there is no `wait`.
        WorkdirError: the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        raise WorkdirError(
            f"cannot lock {file.name}; {reason_of(error)}: its file system has no locks; choose a folder on a local "
            "disk, or mount this one with locks"
        ) from error
