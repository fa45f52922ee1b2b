"""The datasets of a native file: made empty, and appended to."""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dreamgym.data import schema
from dreamgym.data.schema import DatasetMetadata

Array = NDArray[Any]
PAGE_BYTES = 4096


def row_layout(metadata: DatasetMetadata) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of one row of every dataset in a native file, by name."""
    layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        schema.observation_path(key): (box.shape, np.dtype(box.dtype).newbyteorder("<"))
        for key, box in metadata.observation_boxes().items()
    }
    layout[schema.ACTION_KEY] = schema.action_layout(metadata.action_space)
    layout[schema.REWARD_KEY] = (), schema.REWARD_DTYPE
    for column, dtype in schema.EPISODE_COLUMNS.items():
        layout[f"{schema.EPISODE_GROUP}/{column}"] = (), dtype
    return layout


def alignment(metadata: DatasetMetadata) -> dict[str, int]:
    """How a file of such rows is to be opened: chunks that fill whole pages begin on one.

    Reading by position is a tenth faster from there. Chunks that do not fill whole pages are better
    left without gaps, one after the other.
    """
    sizes = [
        schema.chunk_rows(shape, dtype) * math.prod(shape) * dtype.itemsize
        for shape, dtype in row_layout(metadata).values()
    ]
    if max(sizes) % PAGE_BYTES:
        return {}
    return {"alignment_threshold": max(sizes), "alignment_interval": PAGE_BYTES}


def create_layout(file: h5py.File, metadata: DatasetMetadata) -> dict[str, h5py.Dataset]:
    """Attributes and empty datasets of a new file; the datasets by name."""
    for name, value in metadata.to_attributes().items():
        set_attribute(file, name, value)
    return {
        name: file.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(schema.chunk_rows(shape, dtype), *shape),
            dtype=dtype,
        )
        for name, (shape, dtype) in row_layout(metadata).items()
    }


def set_attribute(group: h5py.Group, name: str, value: str | int) -> None:
    """Set an attribute; text in the object header itself, under its checksum.

    Text of variable length would lie in HDF5's global heap, which has no checksum, and a few zeroed
    bytes in it let HDF5 loop for ever.
    """
    if isinstance(value, str):
        text = value.encode()
        dtype = h5py.string_dtype("utf-8", max(len(text), 1))
        group.attrs.create(name, text, dtype=dtype)
    else:
        group.attrs[name] = value


class RowStore:
    """One dataset that rows are appended to, by HDF5's own calls.

    h5py's slice assignment costs twice the time of everything else together, and asking its
    datasets for their shapes and chunks half as much again.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._id = dataset.id
        self._row_shape = tuple(dataset.shape[1:])
        self._corner = (0,) * len(self._row_shape)
        self._chunk_rows = int(dataset.chunks[0])
        self._chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize

    def append(self, start: int, rows: Array) -> None:
        """Write `rows` from `start` on, growing the dataset."""
        stop = start + len(rows)
        if self._id.shape[0] < stop:
            self._id.set_extent((stop, *self._row_shape))
        where = self._id.get_space()
        where.select_hyperslab((start, *self._corner), rows.shape)
        rows = np.ascontiguousarray(rows)
        self._id.write(h5py.h5s.create_simple(rows.shape), where, rows)

    def new_bytes(self, start: int, count: int) -> int:
        """Bytes that the file may grow by when `count` rows are appended from `start` on."""
        chunks = -(-(start + count) // self._chunk_rows) - -(-start // self._chunk_rows)
        return chunks * (self._chunk_bytes + PAGE_BYTES)
