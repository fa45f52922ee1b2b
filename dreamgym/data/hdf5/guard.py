"""What a file is, told from its first bytes, before HDF5 is asked to open it.

HDF5's own messages say little ("unable to synchronously open file"), and some damaged files make
it read past their end. The superblock (HDF5 File Format Specification 3.0, section II.A) says where
the file ends and whether a writer closed it.
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


SIGNATURE = b"\x89HDF\r\n\x1a\n"


# Set while a file is open for writing, and left behind by a killed writer.
WRITE_ACCESS, SWMR_ACCESS = 0x01, 0x04


# Where the signature may stand: at the start, or after a user block of 512, 1024, ... bytes.
_USER_BLOCKS = (0, *(512 << n for n in range(12)))


_OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` to get the file itself"),
    (b"PK\x03\x04", "a zip or npz archive", "convert it with `dreamgym convert`"),
    (b"\x93NUMPY", "a single NumPy array (npy)", "a dataset needs actions and rewards too"),
    (b"\x1f\x8b", "compressed with gzip", "decompress it first"),
    (b"(\xb5/\xfd", "compressed with zstd", "decompress it first"),
    (b"<!DOCTYPE", "an HTML page", "the download gave a web page; download the file itself"),
    (b"<!doctype", "an HTML page", "the download gave a web page; download the file itself"),
    (b"<html", "an HTML page", "the download gave a web page; download the file itself"),
    (b"{", "a JSON file", "give the HDF5 file that it belongs to"),
    (b"\x80\x04", "a Python pickle", "dreamgym never loads pickles; save arrays as npz or HDF5"),
)


@dataclass(frozen=True, kw_only=True)
class Superblock:
    """The parts of an HDF5 superblock that say whether the file is whole.

    Attributes:
        version: 0 to 3.
        offset: Where the superblock stands in the file: the size of the user block.
        flags: File consistency flags; zero in a file that was closed.
        end_of_file: Size in bytes that the file should have, counted from `offset`.
        size: Size in bytes that the file has.
    """

    version: int
    offset: int
    flags: int
    end_of_file: int
    size: int

    @property
    def closed(self) -> bool:
        """No writer has the file open, nor was one killed while it had."""
        return not self.flags & (WRITE_ACCESS | SWMR_ACCESS)


def read_superblock(path: Path) -> Superblock:
    """The superblock of an HDF5 file.

    Raises:
        DatasetError: There is no such file, it is no HDF5 file (the message says what it is), or
            its superblock is of no known version.
    """
    try:
        with _open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            for offset in _USER_BLOCKS:
                if offset + len(SIGNATURE) > size:
                    break
                file.seek(offset)
                head = file.read(96)
                if head.startswith(SIGNATURE):
                    return _parse(head, offset, size, path)
            file.seek(0)
            head = file.read(96)
    except OSError as error:
        raise DatasetError(f"it cannot be read ({error.strerror})", path=path) from error
    raise _not_hdf5(path, head, size)


def require_whole(path: Path, superblock: Superblock) -> None:
    """Raise `DatasetError` where the file is shorter than its superblock says."""
    expected = superblock.offset + superblock.end_of_file
    if superblock.size < expected:
        raise DatasetError(
            f"it is truncated: {superblock.size:,} bytes of {expected:,}",
            path=path,
            remedy="copy or download it again; `dreamgym recover` saves what a killed writer left",
        )


def hold_writer_lock(descriptor: int) -> None:
    """Mark an open file as being written, for as long as this process lives.

    HDF5 gives its own lock back when SWMR begins. This one is shared, so that readers get in.
    """
    if fcntl is not None:
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def being_written(path: Path) -> bool | None:
    """Whether a living writer has the file open; `None` where the system cannot say."""
    if fcntl is not None:
        with contextlib.suppress(OSError), path.open("rb") as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    return None


def _open_regular(path: Path) -> BinaryIO:
    """Open for reading; a pipe or a device would block, or never end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DatasetError("there is no such file", path=path) from None
    if stat.S_ISDIR(mode):
        raise DatasetError(
            "it is a folder, and holds no dataset that dreamgym knows",
            path=path,
            remedy="give the file itself",
        )
    if not stat.S_ISREG(mode):
        raise DatasetError("it is no regular file", path=path)
    return path.open("rb")


def _parse(head: bytes, offset: int, size: int, path: Path) -> Superblock:
    version = head[8] if len(head) > 8 else -1
    try:
        if version in (2, 3):
            flags = head[11]
            end_of_file, width = _address(head, 28), head[9]
        elif version in (0, 1):
            flags = head[20] & (WRITE_ACCESS | SWMR_ACCESS)
            end_of_file, width = _address(head, (24 if version == 0 else 28) + 2 * 8), head[13]
        else:
            raise DatasetError(
                f"its HDF5 superblock has version {version}; versions 0 to 3 are known", path=path
            )
    except (IndexError, struct.error) as error:
        raise DatasetError(f"it is truncated: {size} bytes", path=path) from error
    if width != 8:
        raise DatasetError(f"its HDF5 addresses have {width} bytes; 8 are known", path=path)
    return Superblock(
        version=version, offset=offset, flags=flags, end_of_file=end_of_file, size=size
    )


def _address(head: bytes, position: int) -> int:
    return int(struct.unpack_from("<Q", head, position)[0])


def _not_hdf5(path: Path, head: bytes, size: int) -> DatasetError:
    if size == 0:
        return DatasetError("it is empty (0 bytes)", path=path, remedy="record or download it anew")
    for magic, what, remedy in _OTHER_FORMATS:
        if head.lstrip().startswith(magic) or head.startswith(magic):
            return DatasetError(f"it is {what}, not an HDF5 file", path=path, remedy=remedy)
    return DatasetError(
        f"it is not an HDF5 file (it begins with {head[:8]!r})", path=path, remedy="check the path"
    )


_SIGNATURE = b"GCOL\x01\x00\x00\x00"  # version 1, the only one there is


_HEADER, _OBJECT = 16, 16  # bytes of the header of a collection, and of an object in it


def require_sound_heaps(path: Path) -> None:
    """Raise where a collection of the global heap of a file would never be walked to its end.

    Args:
        path: A whole HDF5 file with addresses of 8 bytes, as `open_file` lets through.

    Raises:
        DatasetError: Of the first such collection.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(_SIGNATURE)
        while place >= 0:
            stuck = _stuck(content, place)
            if stuck is not None:
                raise DatasetError(
                    f"the global heap at byte {place:,} is damaged: an object of no length at "
                    f"byte {stuck:,}",
                    path=path,
                    remedy="copy or download the file again",
                )
            place = content.find(_SIGNATURE, place + len(_SIGNATURE))


def _stuck(content: mmap.mmap, place: int) -> int | None:
    """Where a walk through the collection at `place` stays for ever, if it does."""
    if place + _HEADER > len(content):
        return None
    (size,) = struct.unpack_from("<Q", content, place + 8)
    end = min(place + size, len(content))
    at = place + _HEADER
    while at + _OBJECT <= end:
        (index,) = struct.unpack_from("<H", content, at)
        (length,) = struct.unpack_from("<Q", content, at + 8)
        # Number 0 is the free space at the end, whose length counts its header too.
        step = length if index == 0 else _OBJECT + (length + 7) // 8 * 8
        if step < _OBJECT:
            return at
        at += step
    return None


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
