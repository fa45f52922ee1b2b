"""Open and read untrusted HDF5 files.

HDF5's own messages say little ("unable to synchronously open file"), some damaged files make it
read past their end or loop forever, and others make it read different files or allocate terabytes.
So a file is checked before HDF5 opens it (superblock, heaps), and each object before it is read
(links, storage, dtype, filters).

The format of superblocks and heaps: HDF5 File Format Specification 3.0, sections II.A and III.E.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from dreamgym.errors import DatasetError, UnsupportedSpaceError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MAX_RANK = 8

MAX_UNPACKED = 1 << 30
"""Bytes that a compressed array may have when they are read at once."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEAD_BYTES = 96  # more than the longest superblock

# The signature is at the start of the file, or after a user block of 512, 1024, ... bytes.
_USER_BLOCKS = (0, *(512 << n for n in range(12)))

# Superblock flags that are set while a file is open for writing, and left by a killed writer.
_WRITE_ACCESS, _SWMR_ACCESS = 0x01, 0x04

# A collection of the global heap: signature and version (1 is the only one), 16 bytes of header,
# then objects with 16 bytes of header each.
_HEAP_SIGNATURE = b"GCOL\x01\x00\x00\x00"
_HEAP_HEADER, _HEAP_OBJECT = 16, 16

# First bytes of files that are often mistaken for datasets: what they are, what to do.
_KNOWN_FILES = (
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` to get the file itself"),
    (b"PK\x03\x04", "a zip or npz archive", "convert it with `dreamgym convert`"),
    (b"\x93NUMPY", "a single NumPy array (npy)", "a dataset needs actions and rewards too"),
    (b"\x1f\x8b", "compressed with gzip", "decompress it first"),
    (b"(\xb5/\xfd", "compressed with zstd", "decompress it first"),
    (b"<!DOCTYPE", "an HTML page", "the download gave a web page; download the file itself"),
    (b"<!doctype", "an HTML page", "the download gave a web page; download the file itself"),
    (b"<html", "an HTML page", "the download gave a web page; download the file itself"),
    (b"{", "a JSON file", "give the dataset that it belongs to"),
    (
        b"\x80\x04",
        "a Python pickle",
        "dreamgym never loads pickles; save arrays as npz or HDF5, or load a replay buffer with "
        "the library that wrote it and convert it with dreamgym.data.convert_buffer",
    ),
)

_STAND_INS = ("a Git LFS pointer", "an HTML page")
_POINTER_BYTES = range(100, 200)


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; a pipe or device would block, or never end.

    Raises:
        DatasetError: there is no such file, it is not a regular file, or it cannot be read.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise DatasetError("there is no such file", path=path) from None
    except OSError as error:
        raise DatasetError(f"it cannot be read ({error.strerror})", path=path) from error


def require_regular(path: Path) -> None:
    """Raise `DatasetError` if `path` is a folder, pipe or device.

    Raises:
        OSError: there is no such file, or it cannot be looked at.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise DatasetError(
            "it is a folder; expected a file", path=path, remedy="give the file itself"
        )
    if not stat.S_ISREG(mode):
        raise DatasetError("it is not a regular file", path=path)


def require_files(folder: Path) -> None:
    """Raise `DatasetError` if a folder holds a pipe, a device or a stand-in for a file.

    A library would wait for a pipe, and says little of a stand-in.

    Args:
        folder: the folder; links in it are followed.
    """
    waiting, seen = [folder], {folder.resolve()}
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_dir():
                    if path.resolve() not in seen:
                        seen.add(path.resolve())
                        waiting.append(path)
                elif not entry.is_file():
                    if path.exists():
                        require_regular(path)
                elif entry.stat().st_size in _POINTER_BYTES:
                    refuse_stand_in(path)


def refuse_stand_in(path: Path) -> None:
    """Raise `DatasetError` if a file is a Git LFS pointer or a web page in place of the file."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except (OSError, DatasetError):
        return
    found = stand_in(head)
    if found is not None:
        raise DatasetError(f"it is {found[0]}", path=path, remedy=found[1])


def stand_in(head: bytes) -> tuple[str, str] | None:
    """Return what stands in place of a file, judged by its first bytes, and a remedy; or `None`."""
    kind, remedy = describe_file(head)
    return (kind, str(remedy)) if kind in _STAND_INS else None


def describe_file(head: bytes) -> tuple[str, str | None]:
    """Identify a file that is not HDF5 by its first bytes; return its kind, and a remedy.

    Args:
        head: first bytes of the file; none if it is empty.
    """
    if not head:
        return "empty (0 bytes)", "record or download it again"
    for magic, kind, remedy in _KNOWN_FILES:
        if head.lstrip().startswith(magic) or head.startswith(magic):
            return kind, remedy
    return f"a file that begins with {head[:8]!r}", None


def is_hdf5(path: Path) -> bool:
    """Return whether a regular file has an HDF5 signature; it may still be damaged.

    Raises:
        DatasetError: there is no such file, or it cannot be read.
    """
    with open_regular(path) as file:
        return _find_signature(file) is not None


@contextlib.contextmanager
def hdf5_errors(path: Path, key: str | None = None) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into a `DatasetError` with path and key."""
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
    """Open an HDF5 file that was closed properly, for reading.

    Raises:
        DatasetError: the file is missing, not HDF5, or truncated; or a writer has it open, or was
            killed while it had.
    """
    superblock = read_superblock(path)
    if not superblock.closed:
        raise _unfinished_error(path)
    superblock.require_complete(path)
    with hdf5_errors(path):
        return h5py.File(path, "r", locking="best-effort")


def open_growing(path: Path) -> h5py.File:
    """Open a file that a writer has open, or left when it was killed, for reading (SWMR)."""
    read_superblock(path)
    with hdf5_errors(path):
        return h5py.File(path, "r", swmr=True, locking="best-effort")


def _unfinished_error(path: Path) -> DatasetError:
    alive = is_being_written(path)
    recover = f"save what was committed with `dreamgym recover {path}`"
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
            remedy=f"wait until the recording ends, or {recover}",
        )
    return DatasetError("its writer was killed while it had it open", path=path, remedy=recover)


# ---------------------------------------------------------------- superblock


@dataclass(frozen=True, kw_only=True)
class Superblock:
    """The parts of an HDF5 superblock that tell whether the file is complete.

    Attributes:
        version: version of the superblock, 0 to 3.
        offset: position of the superblock in bytes: the size of the user block.
        flags: file consistency flags; zero after the file was closed.
        end_of_file: size in bytes that the file should have, counted from `offset`; stored counted
            from a base address, which HDF5 sets to the size of the user block.
        size: size in bytes that the file has.
    """

    version: int
    offset: int
    flags: int
    end_of_file: int
    size: int

    @property
    def closed(self) -> bool:
        """Whether the last writer closed the file."""
        return not self.flags & (_WRITE_ACCESS | _SWMR_ACCESS)

    def require_complete(self, path: Path) -> None:
        """Raise `DatasetError` if the file is shorter than its superblock says."""
        expected = self.offset + self.end_of_file
        if self.size < expected:
            raise DatasetError(
                f"it is truncated: {self.size:,} bytes of {expected:,}",
                path=path,
                remedy="copy or download it again; `dreamgym recover` saves what a killed writer "
                "left",
            )


def read_superblock(path: Path) -> Superblock:
    """Read the superblock of an HDF5 file.

    Raises:
        DatasetError: there is no such file, it is not HDF5 (the message says what it is), or its
            superblock has an unknown version.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        offset = _find_signature(file)
        file.seek(offset or 0)
        head = file.read(_HEAD_BYTES)
    if offset is not None:
        return _parse_superblock(head, offset, size, path)
    kind, remedy = describe_file(head)
    raise DatasetError(
        f"it is {kind}, not an HDF5 file", path=path, remedy=remedy or "check the path"
    )


def _find_signature(file: BinaryIO) -> int | None:
    size = os.fstat(file.fileno()).st_size
    for offset in _USER_BLOCKS:
        if offset + len(_SIGNATURE) > size:
            return None
        file.seek(offset)
        if file.read(len(_SIGNATURE)) == _SIGNATURE:
            return offset
    return None


def _parse_superblock(head: bytes, offset: int, size: int, path: Path) -> Superblock:
    version = head[8] if len(head) > 8 else -1
    try:
        if version in (2, 3):
            flags = head[11]
            base, end, width = _read_address(head, 12), _read_address(head, 28), head[9]
        elif version in (0, 1):
            flags = head[20] & (_WRITE_ACCESS | _SWMR_ACCESS)
            position = 24 if version == 0 else 28
            base, end = _read_address(head, position), _read_address(head, position + 2 * 8)
            width = head[13]
        else:
            raise DatasetError(
                f"its HDF5 superblock has version {version}; expected 0 to 3", path=path
            )
    except (IndexError, struct.error) as error:
        raise DatasetError(f"it is truncated: {size} bytes", path=path) from error
    if base > end:
        raise DatasetError(f"its HDF5 superblock is damaged: it ends at byte {end:,}", path=path)
    if width != 8:
        raise DatasetError(f"its HDF5 addresses have {width} bytes; expected 8", path=path)
    return Superblock(
        version=version, offset=offset, flags=flags, end_of_file=end - base, size=size
    )


def _read_address(head: bytes, position: int) -> int:
    return int(struct.unpack_from("<Q", head, position)[0])


# ---------------------------------------------------------------- writer's lock


def hold_writer_lock(descriptor: int) -> None:
    """Mark an open file as being written, for as long as this process has it open.

    HDF5 releases its own lock when SWMR begins. This one is shared, so that readers get in.
    """
    if fcntl is not None:
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def is_being_written(path: Path) -> bool | None:
    """Return whether a live writer has the file open; `None` if the system cannot tell."""
    if fcntl is not None:
        with contextlib.suppress(OSError), open_regular(path) as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    return None


# ---------------------------------------------------------------- global heap


def require_sound_heaps(path: Path) -> None:
    """Check that HDF5 can walk each collection of a file's global heap to its end.

    Values of variable length (JPEG rows) are stored there, without a checksum. HDF5 loops forever
    on an object whose length is zero.

    Args:
        path: a complete HDF5 file with addresses of 8 bytes, as `open_file` accepts.

    Raises:
        DatasetError: a collection is damaged; the message names the first one.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_HEAP_SIGNATURE)
        while start >= 0:
            endless = _find_endless_object(content, start)
            if endless is not None:
                raise DatasetError(
                    f"the global heap at byte {start:,} is damaged: the object at byte "
                    f"{endless:,} has no length",
                    path=path,
                    remedy="copy or download the file again",
                )
            start = content.find(_HEAP_SIGNATURE, start + len(_HEAP_SIGNATURE))


def _find_endless_object(content: mmap.mmap, start: int) -> int | None:
    """Return where a walk through the collection at `start` does not advance, if anywhere."""
    if start + _HEAP_HEADER > len(content):
        return None
    (size,) = struct.unpack_from("<Q", content, start + 8)
    end = min(start + size, len(content))
    position = start + _HEAP_HEADER
    while position + _HEAP_OBJECT <= end:
        (index,) = struct.unpack_from("<H", content, position)
        (length,) = struct.unpack_from("<Q", content, position + 8)
        # Object 0 is the free space at the end; its length includes its header.
        step = length if index == 0 else _HEAP_OBJECT + (length + 7) // 8 * 8
        if step < _HEAP_OBJECT:
            return position
        position += step
    return None


# ---------------------------------------------------------------- groups, datasets, attributes


def is_group(parent: h5py.Group, name: str, path: Path) -> bool:
    """Return whether `name` is a group in this file itself, not a link elsewhere."""
    with hdf5_errors(path, _join(parent, name)):
        link = parent.get(name, getlink=True)
        return isinstance(link, h5py.HardLink) and isinstance(parent[name], h5py.Group)


def get_group(parent: h5py.Group, name: str, path: Path) -> h5py.Group:
    """Return a group of this file itself; links elsewhere are refused.

    Raises:
        DatasetError: it is missing, a link, or not a group.
    """
    node = _follow(parent, name, path)
    if not isinstance(node, h5py.Group):
        raise DatasetError("it is not a group", path=path, key=_join(parent, name))
    return node


def get_dataset(parent: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    """Return a dataset of plain numbers, every byte of which is in this file.

    Raises:
        DatasetError: it is missing, a link, external storage, or a virtual dataset; or its dtype is
            neither a number nor a bool; or the plugin for its filter is missing.
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
                f"its data are outside the file, in {node.external[0][0]!r}",
                key=key,
                remedy="copy the data into one file (h5repack does)",
            )
        if node.dtype.kind not in "biuf" or node.dtype.hasobject or node.dtype.itemsize > 8:
            raise DatasetError(f"its dtype is {node.dtype}; expected a plain number", key=key)
        if node.ndim > _MAX_RANK:
            raise DatasetError(
                f"it has {node.ndim} dimensions; expected at most {_MAX_RANK}", key=key
            )
        _require_filters(node, key)
    return node


def require_stored(dataset: h5py.Dataset, rows: int, path: Path) -> None:
    """Check that the first `rows` rows are stored; HDF5 would read missing ones as zeros.

    Raises:
        DatasetError: the dataset is shorter, or part of it is not in the file.
    """
    key = str(dataset.name)
    if dataset.ndim == 0 or len(dataset) < rows:
        found = "a single value" if dataset.ndim == 0 else f"{len(dataset):,} rows"
        raise DatasetError(f"it has {found}; expected {rows:,}", path=path, key=key)
    with hdf5_errors(path, key):
        stored = dataset.id.get_storage_size()
        if dataset.chunks is None:
            missing = stored < rows * math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
        else:
            missing = _count_stored_chunks(dataset, rows) < _count_expected_chunks(dataset, rows)
    if missing:
        raise DatasetError(
            f"it declares {rows:,} rows but stores only {stored:,} bytes: part of it is missing",
            path=path,
            key=key,
            remedy="the file was damaged or never finished: copy or download it again",
        )


def require_plausible_read(dataset: h5py.Dataset, size: int, path: Path) -> None:
    """Refuse to unpack far more bytes at once than are stored.

    Args:
        dataset: an open dataset.
        size: bytes to read at once.
        path: path of the file, for the error message.

    Raises:
        DatasetError: it is over 1 GiB, and over four times what the dataset stores.
    """
    if size > max(MAX_UNPACKED, 4 * int(dataset.id.get_storage_size())):
        raise too_large_error(size, path, str(dataset.name))


def too_large_error(size: int, path: Path, key: str) -> DatasetError:
    """Return the error for an array that unpacks to more than can be read at once."""
    return DatasetError(
        f"it unpacks to {size:,} bytes that have to be read at once; expected at most "
        f"{MAX_UNPACKED:,}",
        path=path,
        key=key,
        remedy="store it without compression, or in shorter episodes",
    )


def read_plain_attributes(group: h5py.Group, path: Path) -> dict[str, Any]:
    """Read the attributes of a group that are single numbers, or text of fixed length.

    Other attributes are left out. Reading text of variable length from a damaged file may never end
    (see `schema.set_attribute`).
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


def _count_expected_chunks(dataset: h5py.Dataset, rows: int) -> int:
    extent = (rows, *dataset.shape[1:])
    return math.prod(-(-n // chunk) for n, chunk in zip(extent, dataset.chunks, strict=True))


def _count_stored_chunks(dataset: h5py.Dataset, rows: int) -> int:
    """Count the chunks in the file that hold one of the first `rows` rows."""
    if _count_expected_chunks(dataset, rows) > dataset.id.get_storage_size():
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
    """Walk the path `name` link by link, through hard links only."""
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
