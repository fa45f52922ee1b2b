"""Where the rows of a dataset lie: in memory, or in a file and read when asked for.

Rows are counted as the native format counts them: `T + 1` for an episode of `T` actions, one
episode after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rows = NDArray[np.int64]


class Column(Protocol):
    """All rows of one key."""

    def take(self, rows: Rows) -> Array:
        """Rows by number: `(B, L)` whole numbers in, `(B, L, *shape)` out, freshly allocated.

        Along `L` the numbers rise by a constant step, until they stay at an episode's last row.
        """
        ...

    def read(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop`, `(stop - start, *shape)`."""
        ...


class MemoryColumn:
    """Rows held in memory: one fancy index a call."""

    def __init__(self, values: Array) -> None:
        self.values = values

    def take(self, rows: Rows) -> Array:
        """See `Column.take`."""
        return self.values.take(rows, axis=0)

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        return self.values[start:stop]


class SlicedColumn:
    """Rows read from an HDF5 dataset, one slice a window: works everywhere, not the fastest."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def take(self, rows: Rows) -> Array:
        """See `Column.take`."""
        windows = np.empty((*rows.shape, *self._dataset.shape[1:]), dtype=self._dataset.dtype)
        for window, wanted in zip(windows, rows, strict=True):
            first, last = int(wanted[0]), int(wanted[-1])
            window[...] = self._dataset[first : last + 1][wanted - first]
        return windows

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        values: Array = self._dataset[start:stop]
        return values


class EpisodeColumn:
    """Rows that a foreign format reads episode by episode: works everywhere, not the fastest.

    Args:
        read: Gives rows `start` to `stop` of one episode.
        starts: First row of each episode.
        like: No rows, of the shape and dtype that they have.
    """

    def __init__(self, read: Callable[[int, int, int], Array], starts: Array, like: Array) -> None:
        self._read, self._starts, self._like = read, starts, like

    def take(self, rows: Rows) -> Array:
        """See `Column.take`; a window lies in one episode."""
        windows = np.empty((*rows.shape, *self._like.shape[1:]), dtype=self._like.dtype)
        for window, wanted in zip(windows, rows, strict=True):
            first = int(wanted[0])
            window[...] = self.read(first, int(wanted[-1]) + 1)[wanted - first]
        return windows

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        parts = [self._like]
        while start < stop:
            episode = int(np.searchsorted(self._starts, start, side="right")) - 1
            first = int(self._starts[episode])
            last = int(self._starts[episode + 1]) if episode + 1 < len(self._starts) else stop
            values = self._read(episode, start - first, min(stop, last) - first)
            parts.append(values.astype(self._like.dtype, copy=False))
            start = min(stop, last)
        return np.concatenate(parts)


class JoinedColumn:
    """The rows of several columns, one after the other: the shards of a dataset.

    Args:
        columns: At least one.
        counts: Rows of each.
    """

    def __init__(self, columns: Sequence[Column], counts: Sequence[int]) -> None:
        self._columns = list(columns)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - np.asarray(counts)

    def take(self, rows: Rows) -> Array:
        """See `Column.take`; a window lies in one episode, and so in one shard."""
        shards = np.searchsorted(self._ends, rows[:, 0], side="right")
        windows: Array | None = None
        for shard in np.unique(shards):
            chosen = shards == shard
            part = self._columns[shard].take(rows[chosen] - self._starts[shard])
            if windows is None:
                windows = np.empty((len(rows), *part.shape[1:]), dtype=part.dtype)
            windows[chosen] = part
        return self._columns[0].take(rows) if windows is None else windows

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        parts = [
            column.read(max(start - first, 0), min(stop, last) - first)
            for column, first, last in zip(
                self._columns, self._starts.tolist(), self._ends.tolist(), strict=True
            )
            if start < last and stop > first
        ]
        return np.concatenate(parts) if parts else self._columns[0].read(0, 0)


def for_models(column: Column) -> Column:
    """Actions as models take them: whole numbers as int64, others as float32."""
    if not isinstance(column, MemoryColumn):
        return column
    dtype = np.float32 if column.values.dtype.kind == "f" else np.int64
    return MemoryColumn(column.values.astype(dtype, copy=False))
