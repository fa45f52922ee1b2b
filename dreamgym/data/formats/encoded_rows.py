"""Rows of an HDF5 dataset that are JPEG or PNG files: of variable length, or padded."""

from __future__ import annotations

import functools
from pathlib import Path

import h5py
import numpy as np

from dreamgym.data.formats.image_files import decode_images
from dreamgym.data.formats.interface import Array
from dreamgym.data.hdf5.guard import hdf5_errors, require_sound_heaps, require_stored
from dreamgym.errors import DatasetError

_STARTS = (b"\xff\xd8\xff", b"\x89PNG")


def is_encoded(group: h5py.Group, name: str, path: Path) -> bool:
    """Return whether the rows of a dataset are encoded images, judged by the first one."""
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        return False
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        return False
    if h5py.check_vlen_dtype(dataset.dtype) == np.uint8:
        return True
    if dataset.dtype != np.uint8 or dataset.ndim != 2 or not len(dataset):
        return False
    with hdf5_errors(path, str(dataset.name)):
        first = bytes(dataset[0, :4])
    return first.startswith(_STARTS)


def read_encoded_rows(group: h5py.Group, name: str, path: Path, part: slice) -> Array:
    """Decode rows to `(N, H, W, C)` uint8; grey images have one channel.

    Raises:
        DatasetError: a row is not an image, or has another size than the first.
    """
    dataset = group[name]
    key = str(dataset.name)
    if dataset.ndim == 1:
        _require_sound_heaps_once(path, path.stat().st_mtime_ns)
    else:
        require_stored(dataset, len(dataset), path)
    with hdf5_errors(path, key):
        rows = [row.tobytes() for row in dataset[part]]
    if not rows:
        raise DatasetError("it has no images", path=path, key=key)
    try:
        return decode_images(rows, None, key, part.start or 0)
    except DatasetError as error:
        raise error.at(path=path) from error.__cause__


@functools.lru_cache(maxsize=8)
def _require_sound_heaps_once(path: Path, modified: int) -> None:
    """Check the heaps of a file once per modification time (nanoseconds)."""
    require_sound_heaps(path)
