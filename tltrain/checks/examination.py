"""Every check of a run that has not been started, section by section."""

from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from tltrain.checks import data, images, machine, memory, pixels, seconds, settings, texts, weights
from tltrain.checks.case import Case
from tltrain.checks.finding import LEVELS, Finding, advice, of_error
from tltrain.errors import TerminatedError, TltrainError

SECTIONS: dict[str, tuple[Callable[[Case], Iterator[Finding]], ...]] = {
    "Config": (settings.check_names,),
    "Machine": (machine.check_devices, machine.check_workdir),
    "Data": (
        data.check_counts,
        data.check_left_out,
        data.check_files,
        images.check_images,
        texts.check_texts,
        data.check_duplicates,
    ),
    "Weights": (weights.check_weights, texts.check_vocabulary),
    "Pixels": (pixels.check_pixels,),
    "Recipe": (settings.check_recipe,),
    "Cost": (memory.check_memory, memory.check_disk, seconds.check_seconds),
}


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
