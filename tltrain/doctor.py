"""`python -m tltrain.doctor --config FILE`: what would go wrong in a run, or spoil its numbers, before it costs hours.

It looks at the config, the machine, every example, the weights, the pixels as the backbone would see them, and times a
few batches. It changes nothing, and downloads nothing. The exit code is 0, or that of the error of the first problem.
"""

import json
import os
import shutil
import sys
import textwrap
import time
from pathlib import Path

import tltrain
from tltrain.checks import examination, settings
from tltrain.checks.case import Case
from tltrain.checks.finding import Finding, fine
from tltrain.runtime import command, command_line, console

_FILE_WIDTH = 120  # characters of a line where there is no terminal


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    imports = time.perf_counter() - tltrain.STARTED
    parser = command_line.of_config("doctor")
    text = "look at so many examples of each split; default: 0, all"
    parser.add_argument("--limit", type=command_line.number(0, 2**31 - 1), default=0, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")

    def work(arguments, process):
        config = arguments.config
        case = Case(settings.repaired(config), arguments.workdir, arguments.limit, process.stop)
        case.seconds["imports"] = imports
        if arguments.json:
            with console.into(Path(os.devnull)):
                found = examination.examine(config, case)
            print(json.dumps([{"section": section, **finding._asdict()} for section, finding in found], indent=2))
        else:
            found = examination.examine(config, case, show)
            console.say(f"\n{examination.verdict(found)}")
        return examination.exit_code(found)

    return command.run(parser, argv, work)


def show(section: str, findings: list[Finding]) -> None:
    """Prints a section."""
    console.say(f"\n{section}")
    width = shutil.get_terminal_size((_FILE_WIDTH, 0)).columns
    wrap = textwrap.TextWrapper(width, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False)
    for finding in findings or [fine("nothing to say")]:
        console.say(wrap.fill(f"  {finding.level:8} {finding.text}"))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
