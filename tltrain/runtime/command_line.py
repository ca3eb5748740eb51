"""The command line of a verb: its flags, the config file it names, and the changes of its keys."""

import argparse
import contextlib
import difflib
import re
import runpy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from tltrain import config, places
from tltrain.errors import ConfigError
from tltrain.runtime.verbs import VERBS

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(=?)")  # of a key of the config
_SWITCHES = {key for key, value in config.flatten(config.default()).items() if isinstance(value, bool)}
_LONGEST = 300  # characters of what foreign code says


class Parser(argparse.ArgumentParser):
    """Reads the flags of a verb: that it understands an argument in part, or not at all, is a ConfigError."""

    def __init__(self, verb: str) -> None:
        super().__init__(
            f"tltrain {verb}",
            description=VERBS[verb].what,
            epilog=f"example:\n  tltrain {verb} {VERBS[verb].example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message):  # noqa: D102 (of argparse)
        raise ConfigError(f"{message}; on the command line; see {self.prog} --help")

    def not_understood(self, argument: str) -> ConfigError:
        """What to say of `argument`."""
        name = f"--{argument.lstrip('-')}"
        known = re.findall(r"--[a-z_-]+", self.format_usage())
        near = [name] if _OVERRIDE.match(name) else difflib.get_close_matches(name.partition("=")[0], known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        return ConfigError(f"{argument!r} is not understood; on the command line; {advice}")


def of_config(verb: str) -> Parser:
    """What reads the command line of a verb over a config; it gives `config`, not validated yet, and `workdir`."""
    made = Parser(verb)
    add_config(made, required=True)
    made.add_argument("--workdir", type=path, metavar="DIR", help="folder of the record; default: runs/NAME_OF_FILE")
    return made


def add_config(to: Any, required: bool = False) -> None:
    """Adds the flag `--config` to a parser, or to a group of one."""
    text = "file of the experiment; --config.KEY=VALUE changes a key of it, and tltrain/config.py has every key"
    to.add_argument("--config", dest="config_file", type=_config_file, metavar="FILE", required=required, help=text)


def of_job(verb: str) -> Parser:
    """As `of_config`, of a verb that several processes may do together."""
    made = of_config(verb)
    text = "several processes: HOST:PORT at which number 0 listens, or 'auto'; needless under srun and mpirun"
    made.add_argument("--coordinator", metavar="HOST:PORT", default="", help=text)
    made.add_argument("--num_processes", type=int, metavar="P", help="with --coordinator: how many there are")
    made.add_argument("--process_id", type=int, metavar="I", help="with --coordinator: which one this is, from 0")
    return made


def of_run(verb: str) -> Parser:
    """What reads the command line of a verb over a finished run."""
    made = Parser(verb)
    made.add_argument("--workdir", type=path, metavar="DIR", required=True, help="folder of the run")
    return made


def text(given: str) -> str:
    """The `type` of an argument that is not empty, as one by a variable of the shell that is not set."""
    if not given.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return given


def path(text: str) -> Path:
    """The `type` of an argument that is a path."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return places.local(text, "on the command line")


def output_file(text: str) -> Path:
    """The `type` of an argument that is a file to write, looked at before there is work that would be lost."""
    made = path(text)
    if not made.absolute().parent.is_dir():
        raise ConfigError(f"no folder for {made}; on the command line; make it, or give another file")
    if made.is_dir():
        raise ConfigError(f"{made} is a folder; on the command line; give a file")
    return made


def _config_file(text):
    """`FILE` or `FILE:TEXT`, the `~` of `FILE` expanded."""
    file, colon, other = text.partition(":")
    places.local(text, "given by --config")
    return f"{file and places.local(file, 'given by --config')}{colon}{other}"


def number(low: float, high: float) -> Callable[[str], float]:
    """The `type` of an argument from `low` to `high`, of the type of `low`."""

    def read(text):
        with contextlib.suppress(ValueError):
            if low <= (value := type(low)(text)) <= high:
                return value
        kind = "an integer" if isinstance(low, int) else "a number"
        raise argparse.ArgumentTypeError(f"{_short(text)}, allowed: {kind} from {low} to {high}")

    return read


def read(parser: Parser, given: list[str]) -> argparse.Namespace:
    """What `parser` understands of `given`, and the config where it has one.

    Raises:
        ConfigError: something is not understood, has a value of the wrong type, or the config file cannot be run.
    """
    arguments, left = parser.parse_known_args(given)
    if getattr(arguments, "config_file", None):
        overrides = _overrides(parser, left)
        arguments.config = _overridden(_load(arguments.config_file), overrides)
        if not getattr(arguments, "workdir", True):
            arguments.workdir = Path("runs") / Path(arguments.config_file).stem
    elif left:
        raise parser.not_understood(left[0])
    return arguments


def _overrides(parser, given):
    """`given` as `--config.KEY=VALUE` each, where VALUE may have been an argument of its own."""
    found: list[str] = []
    for argument in given:
        if _OVERRIDE.match(argument):
            found.append(argument)
        elif found and "=" not in found[-1] and not argument.startswith("--"):
            found[-1] += f"={argument}"
        else:
            raise parser.not_understood(argument)
    for argument in found:
        no, key, equals = _OVERRIDE.match(argument).groups()
        if message := config.unknown(key):
            raise ConfigError(f"{message}; on the command line; correct the name")
        if not equals and not no and key not in _SWITCHES:
            raise ConfigError(f"{argument} has no value; on the command line; give it as {argument}=VALUE")
    return found


def _load(given):
    """What `get_config()` of the file `given` returns; with `FILE:TEXT`, `get_config(TEXT)`."""
    wanted = "a changed tltrain.config.default()"
    file, *text = given.split(":", 1)
    made: object = None
    try:
        if not Path(file).is_file():
            kind = "a folder" if file and Path(file).is_dir() else "no file"
            raise ConfigError(f"{kind} at {file!r}; given by --config; give the file of a config")
        if (get_config := runpy.run_path(file).get("get_config")) is None:
            raise ConfigError(f"there is no get_config(); in {file}; define it to return {wanted}")
        made = get_config(*text)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a config file is a program, and may fail in every way
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        place = f", line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
        raise ConfigError(f"{type(error).__name__}: {_short(error)}; in {file}{place}; correct it") from error
    if not isinstance(made, ConfigDict):
        raise ConfigError(f"get_config() returns a {type(made).__name__}; in {file}; return {wanted}")
    return made


def _overridden(made, overrides):
    """The config `made`, locked, with the changes of the command line."""
    argv = ["tltrain", *overrides]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", made, flag_values=values, sys_argv=argv)
        values(argv)
    except flags.Error as error:
        raise ConfigError(f"{_short(error)}; on the command line; correct it") from error
    except Exception as error:  # whatever ml_collections makes of a config that lacks keys or holds anything
        reason = next(iter(config.problems(made)), _short(error))
        raise ConfigError(f"{reason}; in the config file; correct it") from error
    return values.config


def _short(said: object) -> str:
    """What foreign code says in a line; its beginning and its end where that is long."""
    line = " ".join(str(said).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
