"""Output of the verbs: progress on stderr, tables on stdout, JSON in a file."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dreamgym._files import atomic_file, json_text

Report = Callable[..., None]  # (done, total) or (done, total, figures)

SECONDS_BETWEEN_LINES = 10.0  # progress lines, where there is no terminal for a bar


@contextmanager
def progress_bar(what: str) -> Iterator[Report]:
    """Show a progress bar on stderr; plain lines from time to time without a terminal.

    Args:
        what: name of the work, one or two words.

    Yields:
        A function of (done, total) or (done, total, figures), to be called during the work.
        `figures` are the latest losses or returns by name, or lists of words.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        with _plain_lines(console, what) as report_line:
            yield report_line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", style="dim"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None, figures="")

        def report(done: int, total: int, figures: Mapping[str, Any] | None = None) -> None:
            bar.update(task, completed=done, total=total, figures=_figures(figures))

        yield report


@contextmanager
def _plain_lines(console: Console, what: str) -> Iterator[Report]:
    """Print a line every `SECONDS_BETWEEN_LINES`, between two reports and after the last, too."""
    latest, ended, left = "", False, threading.Event()

    def write() -> None:
        console.print(latest, markup=False, soft_wrap=True)

    def report(done: int, total: int, figures: Mapping[str, Any] | None = None) -> None:
        nonlocal latest, ended
        latest = f"{what} {done}/{total} {_figures(figures)}".rstrip()
        if done >= total and not ended:
            ended = True
            write()

    def beat() -> None:
        while not left.wait(SECONDS_BETWEEN_LINES):
            if latest:
                write()

    thread = threading.Thread(target=beat, name="dreamgym-progress", daemon=True)
    thread.start()
    try:
        yield report
    finally:
        left.set()
        thread.join()


def _figures(figures: Mapping[str, Any] | None) -> str:
    return "  ".join(f"{name} {_cell(value)}" for name, value in (figures or {}).items())


def number(value: float) -> str:
    """Format a figure for reading: four significant digits, thousands separators."""
    if isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1e4):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def show_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print rows of (name, value) under a title to stdout."""
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE, show_header=False
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    Console(highlight=False).print(table)


def show_columns(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a title and a header to stdout."""
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE)
    for index, name in enumerate(header):
        table.add_column(Text(name), overflow="fold", no_wrap=not index)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def show_figures(title: str, figures: Mapping[str, Any]) -> None:
    """Print JSON-plain figures as a table; groups are indented under their name.

    Empty groups and lists have no row.
    """
    show_table(title, list(_rows(figures, "")))


def _rows(figures: Mapping[str, Any], indent: str) -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        if isinstance(value, Mapping | list | tuple) and not value:
            continue
        label = indent + str(name).replace("_", " ")
        if isinstance(value, Mapping):
            yield label, ""
            yield from _rows(value, indent + "  ")
        else:
            yield label, _cell(value)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(_cell(each) for each in value)
    return str(value)


def say(line: str) -> None:
    """Print one line to stdout, never wrapped, so that a script can read it."""
    Console(highlight=False).print(line, markup=False, soft_wrap=True)


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write figures to a JSON file, atomically.

    Args:
        path: the file; None writes nothing. Its folder is made.
        figures: JSON-plain values; a figure that is not finite is written as null.
    """
    if path is None:
        return
    with atomic_file(path) as temporary:
        temporary.write_text(json_text(figures), encoding="utf-8")
