"""What all pages are made with: templates that escape what they are given, figures as text.

A page is one file that needs no network and runs no script.
"""

import functools
from pathlib import Path
from typing import Any

import jinja2

from tltrain.errors import WorkdirError
from tltrain.training.tasks.task import LABELS, SHARES, Task


def format_by(value: float | None, kind: str) -> str:
    """A figure as the page shows it; a dash for None and NaN."""
    if value is None or value != value:
        return "-"
    return {
        "bare_percent": lambda: f"{100 * value:.2f}",
        "percent": lambda: f"{100 * value:.2f} %",
        "short_percent": lambda: f"{100 * value:.1f} %",
        "points": lambda: f"{100 * value:+.2f}",
        "signed": lambda: f"{value:+.4f}",
        "number": lambda: f"{value:.4f}",
        "count": lambda: f"{value:,}",
        "whole": lambda: f"{value:,.0f}",
        "seconds": lambda: f"{value:,.1f}" if value >= 1 else f"{value:.2f}",
    }[kind]()


def label_of(score: str, task: type[Task]) -> str:
    """What a score is called, with the unit of a loss."""
    return f"loss, {task.unit}" if score == "loss" else LABELS.get(score, score)


def title_of(score: str, task: type[Task], of: str = "") -> str:
    """What stands above a chart of a score, `of` a split, with its unit."""
    text = f"{of} {label_of(score, task)}".lstrip()
    return f"{text[0].upper()}{text[1:]}{', %' if score in SHARES else ''}"


def format_of(score: str) -> str:
    """The `kind` of `format_by`."""
    return "percent" if score in SHARES else "number"


def scale_of(score: str) -> int:
    """What a score is multiplied by in a chart."""
    return 100 if score in SHARES else 1


@functools.cache
def _templates() -> jinja2.Environment:
    """The templates of the package; whatever they are given is escaped, unless it is Markup."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tltrain.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["format_by"] = format_by
    return made


def fill(template: str, **content: Any) -> str:
    """The text of a page."""
    return _templates().get_template(template).render(content)


def name_of(workdir: Path) -> str:
    """Its last two folders: in a sweep these are the arm and the seed."""
    return "/".join(workdir.resolve().parts[-2:])


def write_text(path: Path, text: str) -> None:
    """Writes a page as a whole; what of a file name is no text becomes a question mark. Raises WorkdirError."""
    part = path.with_suffix(".part")
    try:
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(path)
    except OSError as error:
        raise WorkdirError(
            f"cannot write the page; {error.strerror}; {path}; free space or check the folder"
        ) from error
