"""Episodes that are nearly the same: a forgotten seed, or a file that was added twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym.data.columns import Column
from dreamgym.data.table import EpisodeTable

Array = NDArray[Any]
# Two episodes are near where no value differs by more than this share of its channel's range.
TOLERANCE = 1e-3
_SAMPLED = 64  # channels of an image that are looked at
_MAX_EPISODES = 20_000
_LOOKED_AT = 32  # neighbours in the order; where all begin alike, some twins may be missed


def near_duplicates(column: Column, table: EpisodeTable) -> list[tuple[int, int]]:
    """Pairs of episodes of equal length whose observations nearly agree, row by row.

    Episodes are compared with those of the same length that begin and end alike, so that the time
    is that of a sort. Of an image, 64 values spread over it are looked at.

    Args:
        column: Rows of one observation key.
        table: The episodes; at most the first 20,000 are looked at.

    Returns:
        `(earlier, later)` by index; an episode that has several twins is listed once.
    """
    count = min(len(table), _MAX_EPISODES)
    ends = [_ends(column, table, episode) for episode in range(count)]
    if count < 2:
        return []
    stacked = np.stack(ends)
    span = np.ptp(stacked, axis=0)
    scale = np.where(span > 0, span, 1.0)
    pairs = []
    for length in np.unique(table.length[:count]):
        same = np.flatnonzero(table.length[:count] == length)
        order = same[np.argsort(stacked[same, 0], kind="stable")]
        for place, episode in enumerate(order[1:].tolist(), start=1):
            twin = _twin(stacked / scale, order[:place], episode)
            if twin is not None and _alike(column, table, (twin, episode), scale):
                pairs.append((min(twin, episode), max(twin, episode)))
    return sorted(pairs)


def _ends(column: Column, table: EpisodeTable, episode: int) -> Array:
    start = int(table.start[episode])
    stop = start + int(table.length[episode])
    rows = [_some(column.read(row, row + 1)) for row in (start, stop)]
    return np.concatenate(rows, axis=1)[0]


def _some(rows: Array) -> Array:
    flat = rows.reshape(len(rows), -1)
    step = max(1, flat.shape[1] // _SAMPLED)
    return np.nan_to_num(flat[:, ::step].astype(np.float64))


def _twin(points: Array, earlier: Array, episode: int) -> int | None:
    """The nearest one before it in the order, if it begins and ends alike."""
    for other in earlier[::-1][:_LOOKED_AT].tolist():
        if points[episode, 0] - points[other, 0] > TOLERANCE:
            return None
        if np.abs(points[episode] - points[other]).max() <= TOLERANCE:
            return int(other)
    return None


def _alike(column: Column, table: EpisodeTable, pair: tuple[int, int], scale: Array) -> bool:
    rows = []
    for episode in pair:
        start = int(table.start[episode])
        rows.append(_some(column.read(start, start + int(table.length[episode]) + 1)))
    half = scale.reshape(2, -1).max(axis=0)
    return bool((np.abs(rows[0] - rows[1]) <= 2 * TOLERANCE * half).all())
