"""Rows read from a file by their place in it, past HDF5.

An unfiltered HDF5 dataset lies in the file as plain bytes, contiguous or in chunks whose places
are known. Reading those bytes with `preadv` takes a third of the time that HDF5's own slices take,
needs no lock, and reads from a cold disk only what is asked for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dreamgym.data.errors import DatasetError

Array = NDArray[Any]
AVAILABLE = hasattr(os, "preadv")


class PositionedColumn:
    """Rows of an unfiltered dataset, read by position; safe to share between threads.

    Args:
        path: The file.
        dataset: An opened dataset of it, checked by `guard.get_dataset` and `guard.require_stored`.
        rows: How many of its rows there are to read.
    """

    def __init__(self, path: Path, dataset: h5py.Dataset, rows: int) -> None:
        self._path, self._key = path, str(dataset.name)
        self._shape, self._dtype = tuple(dataset.shape[1:]), dataset.dtype
        self._row_bytes = int(np.prod(self._shape)) * self._dtype.itemsize
        self._chunk_rows, self._places = _places(dataset, rows)
        # The row at which the bytes that a chunk begins break off: chunks often lie in a row.
        breaks = np.diff(self._places) != self._chunk_rows * self._row_bytes
        ends = np.append(np.flatnonzero(breaks) + 1, len(self._places))
        run = np.searchsorted(ends, np.arange(len(self._places)), side="right")
        self._run_ends = ends[run] * self._chunk_rows
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        if hasattr(os, "posix_fadvise"):
            # Read-ahead fetches what a random window does not want.
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def take(self, rows: Array) -> Array:
        """See `Column.take`."""
        windows = np.empty((*rows.shape, *self._shape), dtype=self._dtype)
        count, size = rows.shape[1], self._row_bytes
        buffer = windows.reshape(-1).view(np.uint8).data
        firsts, lasts = rows[:, 0], rows[:, -1]
        chunks, within = np.divmod(firsts, self._chunk_rows)
        places = self._places.take(chunks) + within * size
        whole = lasts < self._run_ends.take(chunks)  # one read is enough
        if count > 1:
            whole &= rows[:, 1] - firsts < 2
        ends = (np.arange(len(rows)) * count + lasts + 1 - firsts) * size
        plan = zip(places.tolist(), whole.tolist(), ends.tolist(), strict=True)
        for index, (place, at_once, end) in enumerate(plan):
            begin = index * count * size
            if at_once:
                part = buffer[begin:end]
                got = os.preadv(self._descriptor, [part], place)
                if got != end - begin:
                    raise self._shortened(end - begin - got)
            else:
                self._fill_apart(buffer[begin : begin + count * size], rows[index])
        short = np.flatnonzero(whole & (lasts + 1 - firsts < count))
        for index, present in zip(
            short.tolist(), (lasts + 1 - firsts)[short].tolist(), strict=True
        ):
            windows[index, present:] = windows[index, present - 1]
        return windows

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        return self.take(np.arange(start, stop)[None])[0] if stop > start else self._none()

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _none(self) -> Array:
        return np.empty((0, *self._shape), dtype=self._dtype)

    def _fill_apart(self, buffer: memoryview, rows: Array) -> None:
        """Read rows that do not follow one another in the file, run by run."""
        size = self._row_bytes
        done = 0
        while done < len(rows):
            first = int(rows[done])
            chunk, within = divmod(first, self._chunk_rows)
            run = min(int(self._run_ends[chunk]) - first, len(rows) - done)
            along = rows[done : done + run] == first + np.arange(run)
            run = run if along.all() else int(along.argmin())
            part = buffer[done * size : (done + run) * size]
            got = os.preadv(self._descriptor, [part], int(self._places[chunk]) + within * size)
            if got != len(part):
                raise self._shortened(len(part) - got)
            done += run

    def _shortened(self, missing: int) -> DatasetError:
        return DatasetError(
            f"it ends {missing} bytes early: it was shortened while it was open",
            path=self._path,
            key=self._key,
        )


def readable_by_position(dataset: h5py.Dataset) -> bool:
    """Whether a dataset lies in its file as plain bytes, row after row."""
    if not AVAILABLE or dataset.dtype.byteorder == ">":
        return False
    if dataset.chunks is None:
        return dataset.id.get_offset() is not None
    return (
        dataset.id.get_create_plist().get_nfilters() == 0
        and dataset.chunks[1:] == dataset.shape[1:]
    )


def _places(dataset: h5py.Dataset, rows: int) -> tuple[int, Array]:
    """Rows in a chunk, and where in the file each chunk begins."""
    user_block = dataset.file.userblock_size
    if dataset.chunks is None:
        return rows, np.array([dataset.id.get_offset() + user_block])
    offsets = np.full(-(-rows // dataset.chunks[0]), -1, dtype=np.int64)

    def visit(chunk: Any) -> None:
        number = chunk.chunk_offset[0] // dataset.chunks[0]
        if number < len(offsets) and chunk.filter_mask == 0:
            offsets[number] = chunk.byte_offset + user_block

    dataset.id.chunk_iter(visit)
    end = dataset.file.id.get_filesize() + user_block
    size = dataset.chunks[0] * int(np.prod(dataset.shape[1:])) * dataset.dtype.itemsize
    if (offsets < 0).any() or int(offsets.max(initial=0)) + size > end:
        raise DatasetError("a chunk is missing, or lies outside the file", key=str(dataset.name))
    return dataset.chunks[0], offsets
