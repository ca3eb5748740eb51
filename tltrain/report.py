"""`python -m tltrain.report WORKDIR` writes the page of a finished run again, from its record.

Of several runs it writes one page that lays them side by side.
"""

import os
import sys
from pathlib import Path

from tltrain import config as config_lib
from tltrain.errors import ConfigError
from tltrain.pages import compare, run_page
from tltrain.runtime import command, command_line, console
from tltrain.runtime.record import read_json
from tltrain.training import setup


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    parser = command_line.Parser("report")
    parser.add_argument("workdirs", nargs="+", type=command_line.path, metavar="WORKDIR", help="of a finished run")
    text = "default: report.html of the run, or runs.html beside the runs"
    parser.add_argument("--output", type=command_line.path, metavar="FILE", help=text)

    def work(arguments, process):
        console.say(f"Written: {_write_pages(arguments.workdirs, arguments.output)}")
        return 0

    return command.run(parser, argv, work)


def _write_pages(workdirs: list[Path], output: Path | None) -> Path:
    if len(workdirs) > 1:
        output = output or Path(os.path.commonpath([w.resolve().parent for w in workdirs])) / "runs.html"
        compare.write(workdirs, output)
        return output
    if output is not None:
        raise ConfigError("--output is for several runs; a single one has its report.html; leave it out")

    def read_data():
        config = config_lib.from_dict(read_json(workdirs[0] / "config.json"))
        return setup.read_data(config)

    return run_page.write(workdirs[0], read_data)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
