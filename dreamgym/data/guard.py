"""Opening HDF5 files and what is in them without being led elsewhere, or anywhere.

h5py follows soft and external links, external storage and virtual datasets silently, and reads a
chunk that was never written as zeros. A dataset of 14 KB can declare 1 TiB. Everything that the
data room reads from HDF5 comes through here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamgym.data.errors import DatasetError
from dreamgym.data.spaces import UnsupportedSpaceError
from dreamgym.data.superblock import being_written, read_superblock, require_whole

MAX_RANK = 8
_BUILT_IN_FILTERS = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE})


@contextlib.contextmanager
def hdf5_errors(path: Path, key: str | None = None) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into a `DatasetError` that names path and key."""
    try:
        yield
    except DatasetError as error:
        raise error.at(path=path) from error.__cause__
    except UnsupportedSpaceError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        text = " ".join(str(error).split())
        raise DatasetError(
            f"HDF5 cannot read it ({text[:200]})",
            path=path,
            key=key,
            remedy="the file is damaged: copy or download it again",
        ) from error


def open_file(path: Path) -> h5py.File:
    """Open a closed, whole HDF5 file for reading.

    Raises:
        DatasetError: It is missing, no HDF5 file, truncated, or a writer has it open or was killed.
    """
    superblock = read_superblock(path)
    if not superblock.closed:
        raise _unfinished(path)
    require_whole(path, superblock)
    with hdf5_errors(path):
        return h5py.File(path, "r", locking="best-effort")


def _unfinished(path: Path) -> DatasetError:
    alive = being_written(path)
    recovery = f"save what was committed with `dreamgym recover {path}`"
    if alive:
        return DatasetError(
            "a writer has it open",
            path=path,
            remedy="wait until the recording ends, or read what is committed so far with "
            "Dataset.snapshot",
        )
    if alive is None:
        return DatasetError(
            "a writer has it open, or was killed while it had",
            path=path,
            remedy=f"wait until the recording ends, or {recovery}",
        )
    return DatasetError("its writer was killed while it had it open", path=path, remedy=recovery)


def open_growing(path: Path) -> h5py.File:
    """Open a file that a writer has open, or left when it was killed, for reading (SWMR)."""
    read_superblock(path)
    with hdf5_errors(path):
        return h5py.File(path, "r", swmr=True, locking="best-effort")


def get_group(parent: h5py.Group, name: str, path: Path) -> h5py.Group:
    """A group that really lies in this file; links elsewhere are refused."""
    node = _follow(parent, name, path)
    if not isinstance(node, h5py.Group):
        raise DatasetError("it is not a group", path=path, key=_join(parent, name))
    return node


def get_dataset(parent: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    """A dataset whose every byte lies in this file, of a plain dtype.

    Raises:
        DatasetError: A link, external storage, a virtual dataset, a dtype that is neither a number
            nor a bool, or a filter whose plugin is missing.
    """
    node, key = _follow(parent, name, path), _join(parent, name)
    if not isinstance(node, h5py.Dataset):
        raise DatasetError("it is not a dataset", path=path, key=key)
    with hdf5_errors(path, key):
        if node.id.get_create_plist().get_layout() == h5py.h5d.VIRTUAL:
            raise DatasetError(
                "it is a virtual dataset, which reads other files",
                key=key,
                remedy="copy the data into one file (h5repack does)",
            )
        if node.external:
            raise DatasetError(
                f"its data lie outside the file, in {node.external[0][0]!r}",
                key=key,
                remedy="copy the data into one file (h5repack does)",
            )
        if node.dtype.kind not in "biuf" or node.dtype.hasobject or node.dtype.itemsize > 8:
            raise DatasetError(f"its dtype is {node.dtype}; it must be a plain number", key=key)
        if node.ndim > MAX_RANK:
            raise DatasetError(f"it has {node.ndim} dimensions; at most {MAX_RANK}", key=key)
        _require_filters(node, key)
    return node


def require_stored(dataset: h5py.Dataset, rows: int, path: Path) -> None:
    """Raise where the first `rows` rows are not all stored: HDF5 would read zeros in their place.

    Raises:
        DatasetError: The dataset is shorter, or declares what is not there.
    """
    key = str(dataset.name)
    if dataset.ndim == 0 or len(dataset) < rows:
        have = "a single value" if dataset.ndim == 0 else f"{len(dataset):,} rows"
        raise DatasetError(f"it has {have}; {rows:,} are wanted", path=path, key=key)
    with hdf5_errors(path, key):
        stored = dataset.id.get_storage_size()
        if dataset.chunks is None:
            missing = stored < rows * math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
        else:
            missing = _stored_chunks(dataset, rows) < _wanted_chunks(dataset, rows)
    if missing:
        raise DatasetError(
            f"it declares {rows:,} rows but stores only {stored:,} bytes: part of it is missing",
            path=path,
            key=key,
            remedy="the file was damaged or never finished: copy or download it again",
        )


def _wanted_chunks(dataset: h5py.Dataset, rows: int) -> int:
    extent = (rows, *dataset.shape[1:])
    return math.prod(-(-n // chunk) for n, chunk in zip(extent, dataset.chunks, strict=True))


def _stored_chunks(dataset: h5py.Dataset, rows: int) -> int:
    """How many chunks that hold one of the first `rows` rows are in the file."""
    if _wanted_chunks(dataset, rows) > dataset.id.get_storage_size():
        return 0  # a chunk takes at least a byte: do not walk an index that cannot be complete
    count = 0
    end = dataset.file.id.get_filesize()

    def visit(chunk: Any) -> None:
        nonlocal count
        within = chunk.byte_offset is not None and chunk.byte_offset + chunk.size <= end
        count += within and chunk.chunk_offset[0] < rows

    dataset.id.chunk_iter(visit)
    return count


def _follow(parent: h5py.Group, name: str, path: Path) -> Any:
    """Walk `name` link by link, hard links only."""
    node: Any = parent
    for part in name.split("/"):
        key = _join(node, part)
        with hdf5_errors(path, key):
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                raise DatasetError("it is missing", key=key)
            if not isinstance(link, h5py.HardLink):
                kind = "an external" if isinstance(link, h5py.ExternalLink) else "a soft"
                raise DatasetError(
                    f"it is {kind} link to {link.path!r}",
                    key=key,
                    remedy="copy the data into the file itself",
                )
            node = node[part]
    return node


def _require_filters(dataset: h5py.Dataset, key: str) -> None:
    plist = dataset.id.get_create_plist()
    for number in range(plist.get_nfilters()):
        code, _, _, name = plist.get_filter(number)
        if not _filter_available(code):
            raise DatasetError(
                f"it is compressed with filter {code} ({name.decode(errors='replace') or '?'}), "
                "whose plugin is missing",
                key=key,
                remedy="install hdf5plugin: pip install 'dreamgym[hdf5plugin]'",
            )


def _filter_available(code: int) -> bool:
    if h5py.h5z.filter_avail(code):
        return True
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401  # importing it registers its filters
    return bool(h5py.h5z.filter_avail(code))


def _join(parent: h5py.Group, name: str) -> str:
    base = str(parent.name).rstrip("/") if isinstance(parent, h5py.Group) else ""
    return f"{base}/{name}"


def plain_attributes(group: h5py.Group, path: Path) -> dict[str, Any]:
    """The attributes of a group that are single numbers, or text of fixed length.

    Others are left out; text of variable length because reading it from a damaged file may never
    end (see `layout.set_attribute`).
    """
    values: dict[str, Any] = {}
    with hdf5_errors(path):
        for name in group.attrs:
            attribute = h5py.h5a.open(group.id, name.encode())
            kind = attribute.get_type()
            if attribute.get_space().get_simple_extent_npoints() != 1:
                continue
            if kind.get_class() not in (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT):
                continue
            if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
                continue
            value = group.attrs[name]
            if isinstance(value, np.ndarray | np.generic):
                value = value.item()
            values[name] = value
    return values
