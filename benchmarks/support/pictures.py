"""Plots of the learning benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dreamgym.metrics import OpenLoopErrors

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


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
