"""Plots of the learning benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dreamgym.metrics import OpenLoopErrors


class Curve(NamedTuple):
    """Real returns of one run, by the real steps that had been taken."""

    steps: Sequence[int]
    returns: Sequence[float]


Forecasts = Mapping[str, Mapping[str, Sequence[OpenLoopErrors]]]


def draw_forecasts(drawn: Forecasts, path: Path) -> None:
    """Plot error against horizon: a panel per task, a colour per family, a line per seed.

    Args:
        drawn: by task, then by family, the errors of each seed.
        path: the PNG to write.
    """
    figure = Figure(figsize=(4.2 * len(drawn), 3.6), layout="constrained")
    panels: Any = figure.subplots(1, len(drawn), squeeze=False)[0]
    for ax, (env_id, families) in zip(panels, drawn.items(), strict=True):
        for index, (family, seeds) in enumerate(families.items()):
            for number, errors in enumerate(seeds):
                label = family if number == 0 else None
                ax.plot(errors.horizons, errors.mean, color=f"C{index}", label=label)
                ax.plot(errors.horizons, errors.repeat_last, color="0.6", lw=0.8)
        ax.plot([], [], color="0.6", lw=0.8, label="repeat-last")
        ax.set_title(env_id, fontsize=9)
        ax.set_xlabel("steps ahead")
        ax.set_yscale("log")
    panels[0].set_ylabel("error of the forecast\n(root mean square, in spreads)")
    panels[0].legend(fontsize=7)
    _save(figure, path)


def draw_frames(rows: Mapping[str, NDArray[np.uint8]], steps: Sequence[int], path: Path) -> None:
    """Draw real frames, and below them the dreams of each model under the same actions.

    Args:
        rows: by name, (T, H, W, 3) frames.
        steps: which of them to show, as steps ahead; frame k is the one k steps ahead.
        path: the PNG to write.
    """
    figure = Figure(figsize=(0.9 * len(steps) + 1, 0.95 * len(rows)), layout="constrained")
    panels: Any = figure.subplots(len(rows), len(steps), squeeze=False)
    for line, (name, frames) in zip(panels, rows.items(), strict=True):
        for ax, step in zip(line, steps, strict=True):
            ax.imshow(frames[step])
            ax.set_xticks([])
            ax.set_yticks([])
            if line is panels[0]:
                ax.set_title(f"+{step}", fontsize=8)
        line[0].set_ylabel(name, fontsize=8)
    _save(figure, path)


def draw_returns(
    drawn: Mapping[str, Mapping[str, Sequence[Curve]]], bars: Mapping[str, float], path: Path
) -> None:
    """Plot real return against real steps: a panel per task, a colour per method, a line per seed.

    Args:
        drawn: by task, then by method, the curve of each seed.
        bars: the return to reach, by task.
        path: the PNG to write.
    """
    figure = Figure(figsize=(3.6 * len(drawn), 3.2), layout="constrained")
    panels: Any = figure.subplots(1, len(drawn), squeeze=False)[0]
    for ax, (env_id, methods) in zip(panels, drawn.items(), strict=True):
        for index, (method, seeds) in enumerate(methods.items()):
            for number, curve in enumerate(seeds):
                label = method if number == 0 else None
                ax.plot(
                    curve.steps, curve.returns, color=f"C{index}", marker=".", lw=1, label=label
                )
        ax.axhline(bars[env_id], color="0.6", lw=0.8, ls="--", label="bar")
        ax.set_title(env_id, fontsize=9)
        ax.set_xlabel("real steps")
    panels[0].set_ylabel("real return")
    panels[0].legend(fontsize=7)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
