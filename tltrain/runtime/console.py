"""What a run says on the terminal: a live bar where there is one, plain lines elsewhere."""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tltrain import places

_FILE_WIDTH = 120  # characters of a table where there is no terminal
_console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _FILE_WIDTH)
_PLURAL = re.compile(r"(^| )(folder|file|link|pipe|socket|device|table|row)s(?=[ ,]|$)")
_SINGULAR = r"\1\2"
_PLAIN_SECONDS = 15.0  # between two plain lines about the same work


def printable(text: str) -> str:
    """`text` of a user as one line of a terminal: what moves the cursor or is no character is shown by its code."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, what: str) -> str:
    """`number` of `what`, the plural of files and the like: "1 hidden file or folder", "2 hidden files or folders"."""
    return f"{number} {what}" if number != 1 else f"1 {_PLURAL.sub(_SINGULAR, what)}"


def say(text: str) -> None:
    """One line, or several with line ends of our own."""
    _console.print("\n".join(map(printable, text.split("\n"))), markup=False, emoji=False)


@contextlib.contextmanager
def into(path: Path) -> Iterator[None]:
    """Within the block all but warnings goes to the end of the file `path`, as plain lines; raises WorkdirError."""
    global _console
    before = _console
    with places.writing(path, "free space or check the folder, or choose another --workdir"):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a")
    with opened as file:
        _console = Console(file=file, width=_FILE_WIDTH, highlight=False, soft_wrap=True)
        try:
            yield
        finally:
            _console = before


def warn(text: str) -> None:
    """One line on standard error."""
    print(f"tltrain: {printable(text)}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, its first column to the left, the others to the right."""
    drawn = Table(
        title=Text(printable(title)) if title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        pad_edge=False,
    )
    for i, column in enumerate(columns):
        drawn.add_column(Text(printable(column)), justify="right" if i else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    # as wide as it is: a number is never cut, whatever the width of the terminal
    width = Measurement.get(_console, _console.options.update(max_width=10_000), drawn).maximum
    Console(file=_console.file, width=width, force_terminal=_console.is_terminal, highlight=False).print(drawn)


@contextlib.contextmanager
def progress(title: str, total: int, first: int = 0) -> Iterator[Callable[..., None]]:
    """Yields `update(done, note="")`: shows how much of `total` is done, with `note`, and the time left."""
    if _console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, TimeRemainingColumn(), console=_console, transient=True) as bar:
            task = bar.add_task(title, total=total, completed=first, note="")
            yield lambda done, note="": bar.update(task, completed=done, note=note)
        return
    last = time.monotonic()

    def update(done: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > _PLAIN_SECONDS and done < total:
            last = time.monotonic()
            say(f"{title}: {done}/{total} {note}".rstrip())

    yield update
