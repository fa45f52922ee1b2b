"""Room on the disk, taken before it is needed.

HDF5 cannot survive a full disk: a write that fails leaves dirty blocks in its caches, closing the
file fails too, and then the process crashes with a segmentation fault. So the writer never lets it
come to that: it takes the room from the operating system first, where running out is an ordinary
error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# What the next metadata blocks (chunk indices, object headers) may need beyond the rows themselves.
METADATA_BYTES = 64 << 10
_AHEAD_BYTES = 16 << 20


class Reservation:
    """Room at the end of one file that is being written.

    Args:
        descriptor: Of the open file.
        path: Of the file.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self._end = 0

    def require(self, end: int) -> None:
        """Make sure that the file can grow to `end` bytes, and to a little more.

        Raises:
            OSError: It cannot: the disk is full (ENOSPC), a quota (EDQUOT) or the largest size of a
                file (EFBIG) is reached. Nothing was written.
        """
        end += METADATA_BYTES
        if end <= self._end:
            return
        ahead = end + min(end // 4, _AHEAD_BYTES)
        try:
            self._allocate(ahead)
            self._end = ahead
        except OSError:
            self._allocate(end)
            self._end = end

    def _allocate(self, end: int) -> None:
        if hasattr(os, "posix_fallocate"):
            with _unless_unsupported():
                os.posix_fallocate(self._descriptor, self._end, end - self._end)
                return
        # macOS and Windows have no call for it that Python knows: look, at least.
        missing = end - max(self._end, os.fstat(self._descriptor).st_size)
        if shutil.disk_usage(self._path.parent).free < missing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


@contextlib.contextmanager
def _unless_unsupported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def divert(descriptor: int) -> None:
    """Let everything that is still written to `descriptor` go nowhere.

    For the writer whose disk failed in the middle of a write all the same: what HDF5 holds in its
    caches must not reach the file, which is whole up to the last committed episode.
    """
    if hasattr(os, "memfd_create"):
        nowhere = os.memfd_create("dreamgym-abandoned")
    else:
        with tempfile.TemporaryFile() as file:
            nowhere = os.dup(file.fileno())
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
