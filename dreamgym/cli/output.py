"""How verbs show what they do: bars on stderr, tables on stdout, JSON in a file."""

from __future__ import annotations

import json
import math
import time
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

from dreamgym._files import atomic_file

Report = Callable[..., None]  # (done, total) or (done, total, figures)


SECONDS_BETWEEN_LINES = 10.0  # of progress where there is no terminal to draw a bar on


@contextmanager
def progress_bar(what: str) -> Iterator[Report]:
    """A bar on stderr for long work; plain lines now and then where stderr is not a terminal.

    Args:
        what: the work, one word or two.

    Yields:
        A function of (done, total) or (done, total, figures) to call as the work goes on, figures
        being the latest losses or returns by name, or lists of words.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _plain_lines(console, what)
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


def _plain_lines(console: Console, what: str) -> Report:
    last, ended = time.monotonic(), False

    def report(done: int, total: int, figures: Mapping[str, Any] | None = None) -> None:
        nonlocal last, ended
        now = time.monotonic()
        if ended or (done < total and now - last < SECONDS_BETWEEN_LINES):
            return
        last, ended = now, done >= total
        console.print(
            f"{what} {done}/{total} {_figures(figures)}".rstrip(), markup=False, soft_wrap=True
        )

    return report


def _figures(figures: Mapping[str, Any] | None) -> str:
    return "  ".join(f"{name} {_cell(value)}" for name, value in (figures or {}).items())


def number(value: float) -> str:
    """A figure as a person reads it: four significant digits, thousands apart."""
    if isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1e4):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def show_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print rows of (name, value) under a title on stdout."""
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE, show_header=False
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    Console(highlight=False).print(table)


def show_figures(title: str, figures: Mapping[str, Any]) -> None:
    """Print JSON-plain figures as a table, groups of figures indented under their name."""
    show_table(title, list(_rows(figures, "")))


def _rows(figures: Mapping[str, Any], indent: str) -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
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
    """Print one line on stdout, never wrapped, so that a script can read it."""
    Console(highlight=False).print(line, markup=False, soft_wrap=True)


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write figures to `path`: aside first, then renamed, so that a reader never sees half a file.

    Args:
        path: where; nothing is written when None. Its folder is made.
        figures: JSON-plain values; a figure that is not finite is written as null.
    """
    if path is None:
        return
    text = json.dumps(_finite(figures), indent=2, allow_nan=False) + "\n"
    with atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
