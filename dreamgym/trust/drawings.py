"""Small drawings as inline SVG: lines, bands, points and bars, readable on a phone."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 34
COLOURS = ("#2563a8", "#c2571a", "#2f7d4f", "#7a4b9a", "#8a6d1b", "#b03060", "#157a86", "#555555")

Number = float | None
Points = Sequence[tuple[float, Number]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line, or points where `marks` is true.

    Attributes:
        label: name in the legend; "" for none.
        points: pairs of numbers; None breaks the line.
        colour: number of the colour, or a CSS colour.
        dashed: whether the line is dashed.
        marks: whether points are drawn instead of a line.
        width: width of the line, or radius of the points.
    """

    label: str
    points: Points
    colour: int | str = 0
    dashed: bool = False
    marks: bool = False
    width: float = 1.8


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A plot.

    Attributes:
        title: what it shows.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        lines: lines and points.
        bars: (left, right, height) of bars.
        grey_from: horizontal coordinate from which the plot is grey; None for nowhere.
        y_range: range of the vertical axis; None for that of the numbers.
        x_range: range of the horizontal axis; None for that of the numbers.
        note: a sentence below the plot.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line] = ()
    bars: Sequence[tuple[float, float, float]] = ()
    grey_from: float | None = None
    y_range: tuple[float, float] | None = None
    x_range: tuple[float, float] | None = None
    note: str = ""

    def svg(self) -> str:
        """Return the figure as HTML with an inline SVG."""
        xs = [x for line in self.lines for x, y in line.points if _drawn(y)]
        ys = [
            float(y) for line in self.lines for _, y in line.points if y is not None and _drawn(y)
        ]
        xs += [edge for left, right, _ in self.bars for edge in (left, right)]
        ys += [height for _, _, height in self.bars] + ([0.0] if self.bars else [])
        if not xs:
            return ""
        frame = _Frame(self.x_range or _padded(xs, 0.0), self.y_range or _padded(ys, 0.06))
        parts = [frame.grey(self.grey_from), frame.axes(self.x, self.y)]
        for left, right, height in self.bars:
            parts.append(frame.bar(left, right, height))
        for line in self.lines:
            parts.append(frame.points(line) if line.marks else frame.line(line))
        legend = "".join(
            f"<span><i style='background:{_colour(line.colour)}'></i>"
            f"{html.escape(line.label)}</span>"
            for line in self.lines
            if line.label and line.points
        )
        return (
            f"<figure><figcaption>{html.escape(self.title)}</figcaption>"
            f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' "
            f"aria-label='{html.escape(self.title, quote=True)}'>{''.join(parts)}</svg>"
            f"<div class='legend'>{legend}</div>"
            + (f"<p class='small'>{html.escape(self.note)}</p>" if self.note else "")
            + "</figure>"
        )


class _Frame:
    """Coordinates of a plot."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = _wide(x), _wide(y)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a point in the drawing."""
        (left, right), (low, high) = self.x, self.y
        across = LEFT + (WIDTH - LEFT - RIGHT) * (x - left) / (right - left)
        up = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)
        return across, min(max(up, TOP - 6.0), HEIGHT - BOTTOM + 6.0)

    def grey(self, start: float | None) -> str:
        """Return the grey part of the plot."""
        if start is None or start >= self.x[1]:
            return ""
        left, _ = self.at(max(start, self.x[0]), self.y[0])
        return (
            f"<rect x='{left:.1f}' y='{TOP}' width='{WIDTH - RIGHT - left:.1f}' "
            f"height='{HEIGHT - TOP - BOTTOM}' class='grey'/>"
        )

    def axes(self, x: str, y: str) -> str:
        """Return the grid, its numbers and the names of the axes."""
        parts = []
        for tick in _ticks(*self.y):
            _, up = self.at(self.x[0], tick)
            parts.append(
                f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{up:.1f}' y2='{up:.1f}' class='grid'/>"
            )
            parts.append(
                f"<text x='{LEFT - 5}' y='{up + 3.5:.1f}' text-anchor='end'>{tick:g}</text>"
            )
        for tick in _ticks(*self.x):
            across, _ = self.at(tick, self.y[0])
            parts.append(
                f"<text x='{across:.1f}' y='{HEIGHT - BOTTOM + 13}' text-anchor='middle'>{tick:g}"
                "</text>"
            )
        middle = (HEIGHT - BOTTOM + TOP) / 2
        parts.append(
            f"<text x='{(WIDTH + LEFT - RIGHT) / 2:.0f}' y='{HEIGHT - 5}' text-anchor='middle'>"
            f"{html.escape(x)}</text>"
            f"<text x='10' y='{middle:.0f}' text-anchor='middle' "
            f"transform='rotate(-90 10 {middle:.0f})'>{html.escape(y)}</text>"
        )
        return "".join(parts)

    def bar(self, left: float, right: float, height: float) -> str:
        """Return a bar that stands on zero."""
        x0, top = self.at(left, height)
        x1, bottom = self.at(right, max(0.0, self.y[0]))
        return (
            f"<rect x='{x0 + 0.5:.1f}' y='{min(top, bottom):.1f}' "
            f"width='{max(x1 - x0 - 1, 0.5):.1f}' height='{abs(bottom - top):.1f}' "
            f"fill='{COLOURS[0]}'/>"
        )

    def line(self, line: Line) -> str:
        """Return a polyline, in parts where numbers are missing."""
        parts: list[list[str]] = [[]]
        for x, y in line.points:
            if y is None or not _drawn(y):
                parts.append([])
            else:
                parts[-1].append("{:.1f},{:.1f}".format(*self.at(x, y)))
        dash = " stroke-dasharray='5 4'" if line.dashed else ""
        return "".join(
            f"<polyline fill='none' stroke='{_colour(line.colour)}' stroke-width='{line.width}'"
            f"{dash} points='{' '.join(part)}'/>"
            for part in parts
            if part
        )

    def points(self, line: Line) -> str:
        """Return circles."""
        places = [self.at(x, y) for x, y in line.points if y is not None and _drawn(y)]
        return "".join(
            f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{line.width}' fill='{_colour(line.colour)}' "
            "fill-opacity='0.7'/>"
            for x, y in places
        )


def _colour(colour: int | str) -> str:
    return colour if isinstance(colour, str) else COLOURS[colour % len(COLOURS)]


def _drawn(value: Number) -> bool:
    return value is not None and math.isfinite(value)


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = share * (high - low)
    return (low if low == 0 else low - room), high + room


def _wide(ends: tuple[float, float]) -> tuple[float, float]:
    """Return a range that is not a point."""
    low, high = ends
    if high - low > 1e-12 * max(1.0, abs(low), abs(high)):
        return low, high
    room = 0.5 * abs(low) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Return about four round numbers in a range."""
    raw = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if raw <= size * factor * 1.0001)
    first = math.ceil(low / step - 1e-9)
    ticks = []
    while first * step <= high + 1e-9 * step:
        ticks.append(round(first * step, 12) + 0.0)
        first += 1
    return ticks
