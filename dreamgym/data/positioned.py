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
        self._chunk_rows, self._offsets = _places(dataset, rows)
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        if hasattr(os, "posix_fadvise"):
            # Read-ahead fetches what a random window does not want.
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def take(self, rows: Array) -> Array:
        """See `Column.take`."""
        windows = np.empty((*rows.shape, *self._shape), dtype=self._dtype)
        count = rows.shape[1]
        buffer = windows.reshape(-1).view(np.uint8).data
        size, window_bytes = self._row_bytes, count * self._row_bytes
        firsts, lasts = rows[:, 0].tolist(), rows[:, -1].tolist()
        for index, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
            begin, present = index * window_bytes, last + 1 - first
            if count > 1 and rows[index, 1] - first > 1:
                self._fill_apart(buffer[begin : begin + window_bytes], rows[index])
                continue
            self._fill(buffer[begin : begin + present * size], first)
            if present < count:
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
        """Read rows that do not follow one another."""
        size = self._row_bytes
        for index, row in enumerate(rows.tolist()):
            self._fill(buffer[index * size : (index + 1) * size], row)

    def _fill(self, buffer: memoryview, first: int) -> None:
        """Read whole rows from row `first` on until the buffer is full."""
        size, chunk_rows, offsets = self._row_bytes, self._chunk_rows, self._offsets
        done, wanted = 0, len(buffer)
        chunk, row = divmod(first, chunk_rows)
        while done < wanted:
            offset = offsets[chunk] + row * size
            length = min((chunk_rows - row) * size, wanted - done)
            # Chunks that follow one another in the file are read at once.
            while done + length < wanted and offsets[chunk + 1] == offset + length:
                chunk += 1
                length = min(length + chunk_rows * size, wanted - done)
            got = os.preadv(self._descriptor, [buffer[done : done + length]], offset)
            if got != length:
                raise DatasetError(
                    f"it ends {length - got} bytes early: it was shortened while it was open",
                    path=self._path,
                    key=self._key,
                )
            done, chunk, row = done + length, chunk + 1, 0


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


def _places(dataset: h5py.Dataset, rows: int) -> tuple[int, list[int]]:
    """Rows in a chunk, and where in the file each chunk begins."""
    user_block = dataset.file.userblock_size
    if dataset.chunks is None:
        return rows, [dataset.id.get_offset() + user_block]
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
    return dataset.chunks[0], offsets.tolist()
