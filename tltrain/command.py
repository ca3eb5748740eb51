"""What every verb does around its work: its flags, errors as one line and an exit code, signals."""

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from tltrain import config, download, parallel
from tltrain.errors import ConfigError, TltrainError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the experiment.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the record; default: runs/NAME_OF_THE_CONFIG_FILE.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def run(argv: list[str], work: Callable[[Callable[[], bool]], int]) -> int:
    """Runs `work(stop)` of a verb and returns its exit code, or that of the error it raises.

    `stop()` is true once SIGTERM or SIGINT came. `--debug` in `argv` shows the traceback of an error.
    """
    try:
        parallel.cache_compilations(download.cache_dir() / "xla")
        with _stop_signals() as stop:
            return work(stop)
    except TltrainError as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"tltrain: {error}", file=sys.stderr)
        return error.exit_code


def parser(verb: str, description: str) -> argparse.ArgumentParser:
    """What reads the command line of a verb over a finished run: `--workdir`, `--debug` and what the verb adds."""
    made = argparse.ArgumentParser(f"python -m tltrain.{verb}", description=description)
    made.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def parse_config(argv: list[str]) -> tuple[ConfigDict, Path]:
    """Reads the command line into the flags; returns the config, its values not yet validated, and the workdir.

    Raises:
        ConfigError: an unknown flag or key, a value of the wrong type, or a config file that cannot be run.
    """
    for argument in argv[1:]:
        name = argument.lstrip("-").partition("=")[0]
        if name.startswith("config.") and (message := config.unknown(name.removeprefix("config."))):
            raise ConfigError(f"{message}; on the command line; correct the name")
    try:
        flags.FLAGS(argv)
        if _CONFIG.value is None:
            raise ConfigError("no --config given; on the command line; start with --config configs/cats_dogs.py")
        return _CONFIG.value, Path(_WORKDIR.value or Path("runs") / Path(config_path(argv)).stem)
    except ConfigError:
        raise
    except Exception as error:  # a config file is a program, and may fail in every way
        line = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{line}; in {config_path(argv) or 'the command line'}; correct it") from error


def config_path(argv: list[str]) -> str:
    """The value of `--config` on the command line `argv`, "" where there is none."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name.startswith("-") and name.lstrip("-") == "config":
            return value if equals else following
    return ""


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that is true once SIGTERM or SIGINT came; a second one ends the process at once."""
    received: list[int] = []

    def note(number, _):
        if received:
            os._exit(128 + number)
        received.append(number)
        print("\ntltrain: stopping after this step and saving; once more to stop at once", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
