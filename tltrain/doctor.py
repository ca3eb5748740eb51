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
from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

import tltrain
from tltrain.checks import data, images, machine, memory, pixels, seconds, settings, weights
from tltrain.checks.case import Case
from tltrain.checks.finding import LEVELS, Finding, advice, fine, of_error
from tltrain.errors import TerminatedError, TltrainError
from tltrain.runtime import command, console

_FILE_WIDTH = 120  # characters of a line where there is no terminal

SECTIONS: dict[str, tuple[Callable[[Case], Iterator[Finding]], ...]] = {
    "Config": (settings.check_names,),
    "Machine": (machine.check_devices, machine.check_workdir),
    "Data": (
        data.check_counts,
        data.check_left_out,
        data.check_files,
        images.check_images,
        data.check_duplicates,
    ),
    "Weights": (weights.check_weights,),
    "Pixels": (pixels.check_pixels,),
    "Recipe": (settings.check_recipe,),
    "Cost": (memory.check_memory, memory.check_disk, seconds.check_seconds),
}


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    imports = time.perf_counter() - tltrain.STARTED
    parser = command.of_config("doctor")
    text = "look at so many examples of each split; default: 0, all"
    parser.add_argument("--limit", type=command.number(0, 2**31 - 1), default=0, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")

    def work(arguments, process):
        config = arguments.config
        case = Case(settings.repaired(config), arguments.workdir, arguments.limit, process.stop)
        case.seconds["imports"] = imports
        if arguments.json:
            with console.into(Path(os.devnull)):
                found = examine(config, case)
            print(json.dumps([{"section": section, **finding._asdict()} for section, finding in found], indent=2))
        else:
            found = examine(config, case, show)
            console.say(f"\n{verdict(found)}")
        return exit_code(found)

    return command.run(parser, argv, work)


def examine(
    config: ConfigDict, case: Case, tell: Callable[[str, list[Finding]], None] = lambda section, findings: None
) -> list[tuple[str, Finding]]:
    """Every finding about a run of `config`, with its section.

    Args:
        config: as given, be its values allowed or not.
        case: of `settings.repaired(config)`.
        tell: given the name of a section and its findings, problems first, as soon as they are known.

    Raises:
        TerminatedError: the process was asked to stop.
    """
    found = [("Config", finding) for finding in settings.check_keys(config)]
    for section, checks in SECTIONS.items():
        for check in checks:
            case.end_if_stopped()
            found += [(section, finding) for finding in _findings(check, case, section, found)]
        tell(section, [one for level in LEVELS for name, one in found if (name, one.level) == (section, level)])
    return found


def _findings(check, case, section, before) -> Iterator[Finding]:
    """Those of one check; an error ends it, but hides no other, and is told in full once."""
    try:
        yield from check(case)
    except TerminatedError:
        raise
    except TltrainError as error:
        finding = of_error(error)
        told = [name for name, other in before if other == finding]
        if told and section not in told:
            finding = advice(f"not looked at, for the reason given under {told[0]}")
        if (section, finding) not in before:
            yield finding


def show(section: str, findings: list[Finding]) -> None:
    """Prints a section."""
    console.say(f"\n{section}")
    width = shutil.get_terminal_size((_FILE_WIDTH, 0)).columns
    wrap = textwrap.TextWrapper(width, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False)
    for finding in findings or [fine("nothing to say")]:
        console.say(wrap.fill(f"  {finding.level:8} {finding.text}"))


def verdict(found: list[tuple[str, Finding]]) -> str:
    """All of it in a line."""
    problems = [section for section, finding in found if finding.level == "problem"]
    count = sum(finding.level == "advice" for _, finding in found)
    more = f"{count} piece{'s'[: count != 1]} of advice"
    if not problems:
        return f"Nothing found that would stop the run or spoil its numbers; {more}."
    return f"{len(problems)} problem{'s'[: len(problems) > 1]} ({', '.join(dict.fromkeys(problems))}); {more}."


def exit_code(found: list[tuple[str, Finding]]) -> int:
    """That of the first problem, 0 where there is none."""
    return next((finding.exit_code for _, finding in found if finding.level == "problem"), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
