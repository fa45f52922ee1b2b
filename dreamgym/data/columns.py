"""Where the rows of a dataset lie: in memory, or in a file and read when asked for.

Rows are counted as the native format counts them: `T + 1` for an episode of `T` actions, one
episode after the other.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rows = NDArray[np.int64]


class Column(Protocol):
    """All rows of one key."""

    def take(self, rows: Rows) -> Array:
        """Rows by number: `(B, L)` whole numbers in, `(B, L, *shape)` out, freshly allocated.

        Along `L` the numbers rise by one, until they stay at an episode's last row.
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
            count = last + 1 - first
            self._dataset.read_direct(window, np.s_[first : last + 1], np.s_[:count])
            window[count:] = window[count - 1]
        return windows

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        values: Array = self._dataset[start:stop]
        return values
