"""Pictures: real and dreamt trajectories laid over each other, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym.data import Dataset, skipping
from dreamgym.files import written_aside
from dreamgym.trust.replaying import Replay, replay
from dreamgym.world import World, WorldError

REAL, DREAMT = "#1b1b1b", "#3366aa"
SHOWN_STEPS = 60


def longest_held_out(world: World, data: str | Path, limit: int = SHOWN_STEPS) -> Replay:
    """The longest episode that a world was not fitted on, replayed in dreams.

    Args:
        world: fitted on `data`; its provenance says which episodes were held out.
        data: the dataset's path.
        limit: longer episodes than this are not preferred, so that the picture can be read.
    """
    settings = world.provenance["fit"]
    with Dataset(data) as opened:
        dataset = skipping(opened, world.frame_skip)
        if dataset.checksum != world.provenance["dataset_checksum"]:
            raise WorldError(
                f"{data} is not the dataset that {world.name!r} was fitted to: which of its "
                "episodes were held out is not known; give that dataset"
            )
        _, held_out = dataset.split(settings["held_out"], settings["seed"])
        lengths = np.minimum(np.asarray(dataset.lengths)[held_out], limit)
        return replay(world, dataset.episode(int(held_out[int(lengths.argmax())])))


def draw_overlay(axes: Sequence[Any], shown: Replay, labels: Sequence[str]) -> None:
    """Draw a replay, one axes for each number of the observation.

    Args:
        axes: matplotlib axes, one for each of the n numbers.
        shown: real (T + 1, n) and dreamt (samples, T + 1, n).
        labels: n names with units.
    """
    steps = np.arange(len(shown.real))
    for index, (ax, label) in enumerate(zip(axes, labels, strict=True)):
        dreams = shown.dreamt[..., index]
        for low, high in ((2.5, 97.5), (25, 75)):
            band = np.percentile(dreams, (low, high), axis=0)
            ax.fill_between(steps, *band, color=DREAMT, alpha=0.2, linewidth=0)
        ax.plot(steps, np.median(dreams, 0), color=DREAMT, label="dreamt (median, 50%, 95%)")
        ax.plot(steps, shown.real[:, index], color=REAL, linestyle="--", label="real")
        ax.set_title(label, fontsize=9)
        ax.set_xlabel("step", fontsize=8)


def draw_demo(
    world: World,
    data: str | Path,
    curve: Sequence[tuple[int, float]],
    path: Path,
    *,
    labels: Sequence[str],
) -> None:
    """Write the picture of a whole story: trajectories over each other, and the learning curve.

    Args:
        world: fitted on `data`.
        data: the dataset's path.
        curve: (dream steps, mean dream return) pairs.
        path: the PNG to write.
        labels: a name with its unit for each number of the observation.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, len(labels), height_ratios=(1, 1.15))
    top = [figure.add_subplot(grid[0, index]) for index in range(len(labels))]
    draw_overlay(top, longest_held_out(world, data), labels)
    top[0].legend(fontsize=7)
    below = figure.add_subplot(grid[1, :])
    steps, returns = np.asarray(curve, dtype=float).reshape(-1, 2).T
    below.plot(steps, returns, color=DREAMT)
    below.set_xlabel("training steps in the dream")
    below.set_ylabel(f"mean return of dreams\n(cut off at {world.horizon} steps)")
    below.set_title(
        f"A real {world.env_id} episode that the world never saw, and dreams of the same actions "
        "(above); learning in the dream (below)",
        fontsize=9,
    )
    with written_aside(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
