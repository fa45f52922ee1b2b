"""What a file is, told from its first bytes, before HDF5 is asked to open it.

HDF5's own messages say little ("unable to synchronously open file"), and some damaged files make
it read past their end. The superblock (HDF5 File Format Specification 3.0, section II.A) says where
the file ends and whether a writer closed it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dreamgym.data.errors import DatasetError

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
