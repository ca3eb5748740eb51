"""`python -m tltrain.sweep --config FILE --workdir DIR --seeds N`: every arm with every seed, and their table.

The config file defines, beside `get_config`, a function `sweep` that yields one dict of changed keys an arm, such as
`{"finetune.freeze_until": "block_12"}`. A task of a Slurm job array does its share of the runs; the same command
without an array does those that are missing, and prints the table. With `--jobs N` so many processes do that side by
side.
"""

import argparse
import re
import runpy
import sys
from typing import Any

from tltrain.errors import ConfigError
from tltrain.experiment import jobs, sweeping
from tltrain.runtime import command, command_line, job_array
from tltrain.runtime.process import Process


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns 0, or the exit code of the first arm that failed."""
    parser = command_line.of_config("sweep")
    text = "runs of each arm, with seeds from that of the config on; default: 1"
    parser.add_argument("--seeds", type=command_line.number(1, 10_000), metavar="N", default=1, help=text)
    text = "processes side by side on this machine, each with a GPU of its own where there are; default: 1"
    parser.add_argument("--jobs", type=command_line.number(1, 1000), metavar="N", default=1, help=text)
    parser.add_argument("--share", type=_share, help=argparse.SUPPRESS)  # of a process that --jobs starts

    def work(arguments, process):
        runs = sweeping.members(arguments.config, _arms_of(arguments.config_file), arguments.seeds, arguments.workdir)
        if arguments.share:
            process = Process(asked=jobs.asked_to_end(process.stop))
            return sweeping.run(runs, arguments.workdir, process, arguments.share)
        share = job_array.task() or (0, 1)
        if arguments.jobs > 1:
            line = [sys.executable, "-m", "tltrain.sweep", *argv[1:]]
            return jobs.run(line, runs, arguments.workdir, process, share, arguments.jobs)
        return sweeping.run(runs, arguments.workdir, process, share)

    return command.run(parser, argv, work)


def _share(text):
    if not (found := re.fullmatch(r"(\d+)/(\d+)", text)):
        raise argparse.ArgumentTypeError(f"{text}, allowed: I/N")
    return int(found[1]), int(found[2])


def _arms_of(path: str) -> list[dict[str, Any]]:
    """What `sweep()` of the config file yields."""
    try:
        found = runpy.run_path(path.partition(":")[0])
        arms = list(found["sweep"]()) if "sweep" in found else None
    except Exception as error:  # a config file is a program, and may fail in every way
        raise ConfigError(f"sweep() fails: {type(error).__name__}: {error}; in {path}; correct it") from error
    if not arms or not all(isinstance(arm, dict) for arm in arms):
        raise ConfigError(f"no arms to run; in {path}; define sweep() so that it yields dicts of changed keys")
    return arms


if __name__ == "__main__":
    sys.exit(main(sys.argv))
