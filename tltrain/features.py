"""`python -m tltrain.features --list` shows the stored features, `--clear` frees them, `--config FILE` computes them.

A task of a Slurm job array computes its part of what a run of the config stores; the same command without an array does
what is missing.
"""

import contextlib
import shutil
import sys
from pathlib import Path

from tltrain import places
from tltrain.cache import store
from tltrain.errors import ConfigError, TerminatedError
from tltrain.experiment import storing
from tltrain.runtime import command, command_line, console, job_array


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    parser = command_line.Parser("features")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="show what is stored")
    action.add_argument("--clear", nargs="*", metavar="NAME", help="remove these stores, or all")
    command_line.add_config(action)
    parser.add_argument("--dir", type=command_line.path, help="default: features in the cache folder of tltrain")
    return command.run(parser, argv, _run)


def _run(arguments, process):
    if arguments.config_file:
        arguments.config.features.dir = str(arguments.dir or arguments.config.features.dir)
        storing.run(arguments.config, process, job_array.task())
        return 0
    arguments.dir = arguments.dir or places.cache_dir() / "features"
    found = {folder.name: folder for folder in store.folders(arguments.dir)}
    if arguments.list:
        _show(list(found.values()), arguments.dir)
        return 0
    if unknown := sorted(set(arguments.clear) - set(found)):
        raise ConfigError(f"no store {', '.join(unknown)}; in {arguments.dir}; see --list")
    for name in arguments.clear or found:
        if process.stop():
            raise TerminatedError("stopped; the stores named above are removed; the same command removes the others")
        size = store.num_bytes(found[name]) / 2**20
        console.say(f"removed {name}, {size:.1f} MiB" if _removed(found[name]) else f"left {name}, in use now")
    return 0


def _removed(folder):
    """Removes a store, unless a living process computes it."""
    with folder.with_suffix(".lock").open("w") as file, contextlib.suppress(BlockingIOError):
        places.lock(file)
        shutil.rmtree(folder)
        Path(file.name).unlink()
        return True
    return False


def _show(found: list[Path], directory: Path) -> None:
    for folder in found:
        what = "unfinished"
        if facts := store.facts(folder):
            view = f", view {facts['augment']['view']}" if facts.get("augment") else ""
            what = f"{facts['backbone']} {facts['place']}{view}, {facts['source']} {facts['split']}"
        mib, days = store.num_bytes(folder) / 2**20, store.unused_days(folder)
        console.say(f"{folder.name}  {mib:8.1f} MiB  unused for {days:3.0f} days  {what}")
    total = sum(store.num_bytes(folder) for folder in found)
    console.say(f"{len(found)} stores, {total / 2**30:.2f} GiB, in {directory}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
