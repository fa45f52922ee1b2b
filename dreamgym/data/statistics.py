"""Statistics of a dataset, computed block by block so that images need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data.storage import Column, EpisodeTable

Array = NDArray[Any]

# A channel that is at one end of its range in more than this share of the rows is saturated.
SATURATED_SHARE = 0.5

_BLOCK_BYTES = 32 << 20
_MAX_LISTED_CHANNELS = 32
_BYTE_ROWS = 255  # 255 squares of 255 have a sum below 2**24
_COVERAGE_BINS = 10
_MAX_LISTED_VALUES = 1024


def distribution(values: Array) -> dict[str, float]:
    """Return minimum, quartiles, mean, maximum and standard deviation of `(N,)` values."""
    low, q1, median, q3, high = np.quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0])
    return {
        "min": float(low),
        "q25": float(q1),
        "median": float(median),
        "mean": float(np.mean(values)),
        "q75": float(q3),
        "max": float(high),
        "std": float(np.std(values)),
    }


def episode_returns(reward: Column, table: EpisodeTable) -> Array:
    """Return the sum of rewards of each episode, `(E,)` float64."""
    if not len(table):
        return np.zeros(0)
    total = np.cumsum(reward.read(0, table.num_rows), dtype=np.float64)
    # The last row of an episode has reward zero: the sum up to it is the sum over its actions.
    before = np.where(table.start > 0, total[table.start - 1], 0.0)
    return np.asarray(total[table.start + table.length] - before)


class ChannelStatistics:
    """Running range, mean, spread and saturation of each channel.

    Args:
        shape: shape of one row; every element is a channel.

    Attributes:
        count: number of rows.
        low: smallest value of each channel.
        high: largest value of each channel.
        whole: whether each channel only holds whole numbers.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        size = int(np.prod(shape))
        self.count = 0
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)
        self.whole = np.ones(size, dtype=bool)
        self._shift, self._sum, self._squares = np.zeros(size), np.zeros(size), np.zeros(size)
        self._at_low, self._at_high = np.zeros(size), np.zeros(size)

    def add(self, rows: Array) -> None:
        """Add `(N, *shape)` rows; rows that are not finite are left out."""
        if rows.dtype == np.uint8:
            flat = rows.reshape(len(rows), -1)
            for first in range(0, len(flat), _BYTE_ROWS):
                self._add_bytes(flat[first : first + _BYTE_ROWS])
            return
        values = rows.reshape(len(rows), -1).astype(np.float64)
        values = values[np.isfinite(values).all(axis=1)]
        if not len(values):
            return
        if not self.count:
            # Subtracted before squaring, so that channels far from zero keep their digits.
            self._shift = values[0]
        self.whole &= (values == np.rint(values)).all(axis=0)
        low, high = values.min(axis=0), values.max(axis=0)
        # An end of the range that moves outwards has been reached by none of the rows before.
        self._at_low = np.where(low < self.low, 0, self._at_low)
        self._at_high = np.where(high > self.high, 0, self._at_high)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self._at_low += (values == self.low).sum(axis=0)
        self._at_high += (values == self.high).sum(axis=0)
        self._sum += (values - self._shift).sum(axis=0)
        self._squares += np.square(values - self._shift).sum(axis=0)
        self.count += len(values)

    def _add_bytes(self, rows: Array) -> None:
        """Add `(N, n)` bytes, at most `_BYTE_ROWS`: images are most of what is ever counted."""
        low, high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))
        self._at_low = np.where(low < self.low, 0, self._at_low) + _count_equal(rows, low)
        self._at_high = np.where(high > self.high, 0, self._at_high) + _count_equal(rows, high)
        self.low, self.high = low, high
        # In float32, sums of so few bytes and of their squares are exact.
        values = rows.astype(np.float32)
        self._sum += values.sum(0)
        self._squares += np.einsum("ij,ij->j", values, values)
        self.count += len(rows)

    @property
    def mean(self) -> Array:
        """Mean of each channel."""
        return self._sum / max(self.count, 1) + self._shift

    @property
    def std(self) -> Array:
        """Standard deviation of each channel."""
        count = max(self.count, 1)
        variance = self._squares / count - np.square(self._sum / count)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)))

    @property
    def constant(self) -> list[int]:
        """Channels that never change."""
        return np.flatnonzero(self.low == self.high).tolist()

    @property
    def saturated(self) -> list[int]:
        """Channels that change, but are at one end of their range most of the time."""
        share = np.maximum(self._at_low, self._at_high) / max(self.count, 1)
        return np.flatnonzero((share > SATURATED_SHARE) & (self.low < self.high)).tolist()

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-plain values; channels are listed if there are few."""
        if not self.count:
            return {"rows": 0}
        mean, std = self.mean, self.std
        summary: dict[str, Any] = {
            "rows": self.count,
            "channels": len(mean),
            "min": float(self.low.min()),
            "max": float(self.high.max()),
            "mean": float(mean.mean()),
            "constant_channels": len(self.constant),
            "saturated_channels": len(self.saturated),
        }
        if len(mean) <= _MAX_LISTED_CHANNELS:
            summary["per_channel"] = [
                {"min": a, "max": b, "mean": c, "std": d}
                for a, b, c, d in zip(
                    self.low.tolist(), self.high.tolist(), mean.tolist(), std.tolist(), strict=True
                )
            ]
        return summary


def _count_equal(rows: Array, values: Array) -> Array:
    """Return in how many of at most 255 rows each channel has its value, `(n,)`."""
    equal = rows == values.astype(np.uint8)
    return np.asarray(np.add.reduce(equal.view(np.uint8), axis=0, dtype=np.uint8))


def channel_statistics(column: Column, shape: tuple[int, ...], num_rows: int) -> ChannelStatistics:
    """Return the statistics over all rows of a column."""
    statistics = ChannelStatistics(shape)
    for _, rows in channel_blocks(column, shape, num_rows):
        statistics.add(rows)
    return statistics


def channel_blocks(
    column: Column, shape: tuple[int, ...], num_rows: int
) -> Iterator[tuple[int, Array]]:
    """Yield the first row and the rows of blocks that fit in memory as float64."""
    step = max(1, _BLOCK_BYTES // (8 * int(np.prod(shape))))
    for first in range(0, num_rows, step):
        yield first, column.read(first, min(first + step, num_rows))


def reward_statistics(column: Column, table: EpisodeTable) -> dict[str, Any]:
    """Return the statistics of the rewards of all actions."""
    statistics = ChannelStatistics(())
    statistics.add(column.read(0, table.num_rows)[table.has_action])
    return statistics.as_dict()


def action_use(column: Column, table: EpisodeTable, space: gym.Space[Any]) -> dict[str, Any]:
    """Return how the actions cover their space.

    Args:
        column: rows of actions.
        table: the episodes.
        space: the action space.

    Returns:
        For a discrete space the share of each value; for a Box, and for more than 1024 values, the
        statistics, the covered share of each dimension's range, and the share of actions at its
        ends.
    """
    actions = column.read(0, table.num_rows)[table.has_action].reshape(table.num_steps, -1)
    if isinstance(space, spaces.Box):
        low, high = space.low.reshape(-1), space.high.reshape(-1)
    else:
        starts, counts = _discrete_values(space)
        if max(counts) <= _MAX_LISTED_VALUES:
            shares = [
                _shares(actions[:, i], start, count)
                for i, (start, count) in enumerate(zip(starts, counts, strict=True))
            ]
            return {"share": shares[0] if isinstance(space, spaces.Discrete) else shares}
        low = np.array(starts, np.float64)
        high = low + np.array(counts, np.float64) - 1
    statistics = ChannelStatistics((actions.shape[1],))
    statistics.add(actions)
    use = statistics.as_dict()
    use["coverage"] = _coverage(actions, low, high)
    use["share_at_low"] = (actions == low).mean(axis=0).tolist()
    use["share_at_high"] = (actions == high).mean(axis=0).tolist()
    return use


def _discrete_values(space: gym.Space[Any]) -> tuple[list[int], list[int]]:
    """Return the first value of each choice, and the number of its values."""
    if isinstance(space, spaces.Discrete):
        return [int(space.start)], [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return space.start.reshape(-1).tolist(), space.nvec.reshape(-1).tolist()
    raise TypeError(f"expected a Box, Discrete or MultiDiscrete space, got {space}")


def _coverage(actions: Array, low: Array, high: Array) -> list[float]:
    """Return the share of ten equal bins of each dimension's range that hold an action."""
    finite = np.isfinite(low) & np.isfinite(high)
    bottom = np.where(finite, low, actions.min(axis=0)).astype(np.float64)
    span = np.where(finite, high, actions.max(axis=0)).astype(np.float64) - bottom
    bins = _COVERAGE_BINS * (actions - bottom) / np.where(span > 0, span, 1.0)
    bins = np.clip(np.nan_to_num(bins), 0, _COVERAGE_BINS - 1).astype(np.int64)
    return [len(np.unique(bins[:, i])) / _COVERAGE_BINS for i in range(bins.shape[1])]


def _shares(values: Array, start: int, count: int) -> list[float]:
    inside = values[(values >= start) & (values < start + count)] - start
    return (np.bincount(inside.astype(np.int64), minlength=count) / max(len(values), 1)).tolist()
