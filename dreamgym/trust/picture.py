"""The picture of a world's card: the real environment beside dreams, and error against horizon."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from dreamgym._extras import import_extra

CHANNELS = 3
"""Numbers of a vector observation that are drawn, those that vary first."""
FRAMES = 6
DPI = 96
COLOURS = 256
REAL, DREAM = "0.15", "C0"


def card_picture(figures: dict[str, Any]) -> bytes | None:
    """Draw what a person should see first of a world.

    For vectors: a held-out episode beside dreams of the same actions, and the error of dreams by
    horizon; for images: real frames above dreamt ones, and the same errors.

    Args:
        figures: `Report.figures`.

    Returns:
        A PNG; None where the world does not decode observations, so that nothing can be drawn.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    examples = figures.get("examples") or {}
    table = figures.get("channels") or figures.get("frames")
    if table is None or not (examples.get("real") or examples.get("frames")):
        return None
    import_extra("matplotlib", "the picture of a card")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.6), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(2.6, 1)))
    if examples.get("frames"):
        _draw_frames(left, examples["frames"])
    else:
        _draw_numbers(left, examples, figures["channels"])
    _draw_errors(right.subplots(), table)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    return _smaller(drawn)


def _smaller(drawn: io.BytesIO) -> bytes:
    """Return a PNG with a palette, a third of the size: cards lie in repositories."""
    from PIL import Image  # comes with matplotlib

    out = io.BytesIO()
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(out, format="png", optimize=True)
    return out.getvalue()


def _draw_numbers(figure: Any, examples: dict[str, Any], table: dict[str, Any]) -> None:
    """Draw some numbers of an observation: real ones dashed, dreams as thin lines."""
    names = table["names"]
    order = sorted(range(len(examples["real"])), key=lambda i: not table["varies"][i])
    chosen = sorted(order[:CHANNELS])
    for ax, channel in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        real = examples["real"][channel]
        for number, dream in enumerate(examples["dreamt"]):
            label = "dreams" if number == 0 else None
            ax.plot(dream[channel], color=DREAM, lw=0.8, alpha=0.6, label=label)
        ax.plot(real, color=REAL, lw=1.4, ls="--", label="real")
        ax.set_title(names[channel], fontsize=8)
        ax.set_xlabel("steps ahead, same actions", fontsize=7)
        ax.tick_params(labelsize=7)
        if channel == chosen[0]:
            ax.legend(fontsize=7, frameon=False)


def _draw_frames(figure: Any, frames: list[dict[str, Any]]) -> None:
    """Draw real frames above dreamt ones."""
    from matplotlib.image import imread

    first = [each for each in frames if each["key"] == frames[0]["key"]]
    places = np.linspace(0, len(first) - 1, min(FRAMES, len(first))).round().astype(int)
    panels = figure.subplots(2, len(places), squeeze=False)
    for column, place in zip(panels.T, places, strict=True):
        for ax, which in zip(column, ("real", "dreamt"), strict=True):
            pixels = imread(io.BytesIO(base64.b64decode(first[place][which])))
            ax.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            ax.set_xticks([])
            ax.set_yticks([])
        column[0].set_title(f"+{first[place]['step']}", fontsize=8)
    panels[0, 0].set_ylabel("real", fontsize=8)
    panels[1, 0].set_ylabel("dream", fontsize=8)


def _draw_errors(ax: Any, table: dict[str, Any]) -> None:
    """Draw the error by horizon of dreams and of repeating the last observation."""
    varies = np.flatnonzero(table["varies"])
    for key, label, style in (
        ("mean", "mean of dreams", {"color": DREAM}),
        ("sampled", "one dream", {"color": DREAM, "ls": ":"}),
        ("repeat_last", "repeat the last", {"color": "0.6"}),
    ):
        error = np.sqrt(np.square(np.asarray(table[key], float)[:, varies]).mean(1))
        ax.plot(table["horizons"], error, label=label, lw=1.4, **style)
    ax.set_yscale("log")
    ax.set_title("error against horizon", fontsize=8)
    ax.set_xlabel("steps ahead", fontsize=7)
    ax.tick_params(labelsize=7, which="both")
    ax.legend(fontsize=7, frameon=False)
