"""Notes on the numbers of a dataset: digits that are lost, angles that wrap, whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data.statistics import ChannelStatistics, channel_blocks
from dreamgym.data.storage import Column, Source

Array = NDArray[Any]

# Float32 numbers lie this far apart, relative to their size.
_FLOAT32_SPACING = float(np.finfo(np.float32).eps)

# Digits are lost if a channel's standard deviation is below this many spacings of float32.
_MIN_SPACINGS = 100

# A change of more than the first share of the range is a jump, where all others are below the
# second; and a channel that jumps at every other step is not an angle.
_JUMP, _NO_JUMP, _MAX_JUMPS_SHARE = 0.8, 0.5, 0.3
_MIN_JUMPS = 3


def numeric_notes(source: Source, statistics: dict[str, ChannelStatistics]) -> list[str]:
    """Return what a user should know about the numbers of a dataset.

    Args:
        source: the dataset.
        statistics: statistics of all rows by observation key.
    """
    notes = []
    boxes = source.metadata.observation_columns()
    for key, figures in statistics.items():
        if not figures.count or np.dtype(boxes[key].dtype).kind != "f":
            continue
        notes += _lost_digits(f"of {key!r}", figures)
        notes += _whole_numbers(key, figures)
        notes += _wrapping_channels(key, source.observations[key], boxes[key], figures, source)
    rewards = ChannelStatistics(())
    rewards.add(source.reward.read(0, source.table.num_rows)[source.table.has_action])
    if rewards.count:
        notes += _lost_digits("of the rewards", rewards)
    return notes


def _lost_digits(where: str, figures: ChannelStatistics) -> list[str]:
    """Note channels whose variation is small beside their offset."""
    size = np.maximum(np.abs(figures.low), np.abs(figures.high))
    step = _FLOAT32_SPACING * size
    lost = np.flatnonzero((figures.std < _MIN_SPACINGS * step) & (figures.low < figures.high))
    if not len(lost):
        return []
    worst = lost[np.argmax(step[lost] / np.maximum(figures.std[lost], np.finfo(float).tiny))]
    return [
        f"{_channels(lost)} {where} {_verb(lost, 'loses', 'lose')} digits in float32, in which "
        f"models and policies compute: channel {worst} is near "
        f"{figures.high[worst]:.7g} and varies by {figures.std[worst]:.2g}, while float32 has "
        f"steps of {step[worst]:.2g} there; subtract the offset in the environment"
    ]


def _whole_numbers(key: str, figures: ChannelStatistics) -> list[str]:
    """Note channels of floats that only hold whole numbers.

    Flags of 0 and 1 are common, and large floats have no digits after the point.
    """
    small = np.maximum(np.abs(figures.low), np.abs(figures.high)) < 1 / _FLOAT32_SPACING
    whole = np.flatnonzero(figures.whole & small & (figures.high - figures.low >= 2))
    if not len(whole):
        return []
    return [
        f"{_channels(whole)} of {key!r} only {_verb(whole, 'holds', 'hold')} whole numbers: dreams "
        "give fractions between them; if the numbers are codes of classes, give one channel of 0 "
        "and 1 for each class instead"
    ]


def _wrapping_channels(
    key: str, column: Column, box: spaces.Box, figures: ChannelStatistics, source: Source
) -> list[str]:
    """Note channels that jump from one end of their range to the other, as angles do."""
    span = figures.high - figures.low
    scale = np.where(span > 0, span, 1.0)
    has_action = source.table.has_action
    jumps, between, moves, clipped = (np.zeros(len(span)) for _ in range(4))
    for first, rows in channel_blocks(column, box.shape, source.table.num_rows):
        values = rows.reshape(len(rows), -1).astype(np.float64)
        with np.errstate(invalid="ignore"):
            change = np.abs(np.diff(values, axis=0)) / scale
        change = change[has_action[first : first + len(rows) - 1]]
        # A clipped channel jumps from bound to bound exactly; an angle does so by chance only.
        jumps += ((change > _JUMP) & (change < 1)).sum(axis=0)
        clipped += (change == 1).sum(axis=0)
        between += ((change > _NO_JUMP) & (change <= _JUMP)).sum(axis=0)
        moves += ((change > 0) & (change <= _NO_JUMP)).sum(axis=0)
    # The other changes must be moves: a flag jumps too, and does nothing else.
    wraps = (
        (jumps >= _MIN_JUMPS)
        & (between + clipped < 0.1 * jumps)
        & (jumps < _MAX_JUMPS_SHARE * moves)
    )
    found = np.flatnonzero(wraps)
    if not len(found):
        return []
    example = found[0]
    return [
        f"{_channels(found)} of {key!r} {_verb(found, 'wraps', 'wrap')} like an angle: channel "
        f"{example} jumps by its whole range of {span[example]:.4g} in {jumps[example]:.0f} steps, "
        "and otherwise by less than half of it; a model cannot predict such jumps well: give "
        "the sine and cosine of the angle instead"
    ]


def _channels(indices: Array) -> str:
    shown = ", ".join(map(str, indices[:8].tolist())) + (", ..." if len(indices) > 8 else "")
    return f"{_verb(indices, 'channel', 'channels')} {shown}"


def _verb(indices: Array, singular: str, plural: str) -> str:
    return singular if len(indices) == 1 else plural
