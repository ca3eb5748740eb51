"""`python -m tltrain.main --config FILE`: flags -> config -> train.run. This file is kept short."""

import sys
import time

import tltrain
from tltrain.experiment import train
from tltrain.runtime import command, command_line


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    imports = time.perf_counter() - tltrain.STARTED

    def work(arguments, process):
        process.clock.seconds["imports"] = imports
        train.run(arguments.config, arguments.workdir, process)
        return 0

    return command.run(command_line.of_job("main"), argv, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
