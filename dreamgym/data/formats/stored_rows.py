"""Arrays that stay in their file and are read row by row, so that they need not fit in memory."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from dreamgym.data.formats.interface import NpzFile, Probe
from dreamgym.data.hdf5.guard import (
    get_dataset,
    get_group,
    hdf5_errors,
    is_group,
    require_plausible_read,
    require_stored,
)
from dreamgym.errors import DatasetError

Array = NDArray[Any]

_BLOCK_BYTES = 16 << 20
_SKIP_BYTES = 1 << 20


class StoredRows:
    """An array in a file, of which slices are read: `rows[start:stop]`.

    Slices in rising order are cheap: a block of rows is read at once and kept.

    Args:
        shape: shape of the array.
        dtype: its dtype.
        read: reads rows from a start to a stop.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], read: Callable[[int, int], Array]
    ) -> None:
        self.shape, self.dtype, self.read = shape, dtype, read
        self.row_bytes = max(1, math.prod(shape[1:]) * dtype.itemsize)
        self._first, self._block = 0, np.empty((0, *shape[1:]), dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Array:
        start, stop, _ = part.indices(len(self))
        stop = max(start, stop)
        if not (self._first <= start and stop <= self._first + len(self._block)):
            last = min(len(self), max(stop, start + _BLOCK_BYTES // self.row_bytes))
            self._first, self._block = start, self.read(start, last)
        return self._block[start - self._first : stop - self._first]


def open_columns(probe: Probe, name: str) -> Any:
    """Open an array of an HDF5 file or npz archive, or a group of arrays as a dict by key.

    Returns:
        `StoredRows`, or a dict of them; keys of groups in groups are joined with `/`.

    Raises:
        DatasetError: it is missing, not an array of numbers, or not stored in full.
    """
    if probe.hdf5 is not None:
        return _open_hdf5(probe.hdf5, name, probe.path)
    if probe.npz is not None:
        return _open_npz(probe.npz, name)
    raise DatasetError("expected an HDF5 or npz file", path=probe.path, key=name)


def _open_hdf5(parent: h5py.Group, name: str, path: Path) -> Any:
    if is_group(parent, name, path):
        group, rows = get_group(parent, name, path), {}
        for key in group:
            inner = _open_hdf5(group, key, path)
            nested = inner.items() if isinstance(inner, dict) else [("", inner)]
            rows.update({f"{key}/{each}" if each else key: values for each, values in nested})
        return rows
    dataset = get_dataset(parent, name, path)
    if dataset.ndim == 0:
        raise DatasetError("it is a single value; expected rows", path=path, key=str(dataset.name))
    require_stored(dataset, len(dataset), path)
    row_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize

    def read(start: int, stop: int) -> Array:
        require_plausible_read(dataset, (stop - start) * row_bytes, path)
        with hdf5_errors(path, str(dataset.name)):
            values: Array = dataset[start:stop]
        return values

    return StoredRows(tuple(dataset.shape), dataset.dtype, read)


def _open_npz(archive: NpzFile, name: str) -> Any:
    """Open an array of an archive; one in Fortran's order can only be read whole."""
    header = archive.read_header(name)
    if header is None:
        values = archive.read_rows(name)
        return StoredRows(values.shape, values.dtype, lambda start, stop: values[start:stop])
    shape, dtype = header
    return StoredRows(shape, dtype, _NpzReader(archive, name, shape, dtype).read)


class _NpzReader:
    """Reads rows of a compressed array in rising order, without unpacking the others."""

    def __init__(
        self, archive: NpzFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._archive, self._name, self._shape, self._dtype = archive, name, shape, dtype
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._file: BinaryIO | None = None
        self._row = 0

    def read(self, start: int, stop: int) -> Array:
        """Return the rows from `start` to `stop`.

        Raises:
            DatasetError: the file ends before them, or is damaged.
        """
        try:
            if self._file is None or start < self._row:
                self._file, self._row = self._archive.open_data(self._name), 0
            skipped = (start - self._row) * self._row_bytes
            while skipped > 0:
                skipped -= self._exactly(min(skipped, _SKIP_BYTES)).nbytes
            self._row = start
            content = self._exactly((stop - start) * self._row_bytes)
            self._row = stop
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(
                f"it cannot be read ({error})", path=self._archive.path, key=self._name
            ) from error
        return content.view(self._dtype).reshape(stop - start, *self._shape[1:])

    def _exactly(self, count: int) -> NDArray[np.uint8]:
        content = cast(BinaryIO, self._file).read(count)
        if len(content) != count:
            raise EOFError(f"it ends {count - len(content)} bytes early")
        return np.frombuffer(bytearray(content), np.uint8)
