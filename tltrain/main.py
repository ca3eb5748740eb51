"""`python -m tltrain.main --config FILE`: flags -> config -> train.run. This file is kept short."""

import contextlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from absl import flags
from ml_collections import config_flags

import tltrain
from tltrain import config, download, parallel, train
from tltrain.errors import ConfigError, TltrainError
from tltrain.workdir import Clock

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the experiment.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run's record; default: runs/NAME_OF_THE_CONFIG_FILE.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def parse(argv: list[str]):
    """Reads the command line into the flags; returns the config, its values not yet validated.

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
        return _CONFIG.value
    except ConfigError:
        raise
    except Exception as error:  # a config file is a program, and may fail in every way
        line = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{line}; in {_config_path(argv) or 'the command line'}; correct it") from error


def _config_path(argv: list[str]) -> str:
    """The value of `--config`, "" where there is none."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name.startswith("-") and name.lstrip("-") == "config":
            return value if equals else following
    return ""


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    clock = Clock()
    clock.seconds["imports"] = time.perf_counter() - tltrain.STARTED
    debug = "--debug" in argv
    try:
        experiment = parse(argv)
        workdir = Path(_WORKDIR.value or Path("runs") / Path(_config_path(argv)).stem)
        parallel.cache_compilations(download.cache_dir() / "xla")
        with _stop_signals() as stop:
            train.run(experiment, workdir, clock, stop)
        return 0
    except TltrainError as error:
        if debug:
            traceback.print_exc()
        print(f"tltrain: {error}", file=sys.stderr)
        return error.exit_code


@contextlib.contextmanager
def _stop_signals():
    """Yields a function that is true once SIGTERM or SIGINT came; a second one ends the process at once."""
    received = []

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


if __name__ == "__main__":
    sys.exit(main(sys.argv))
