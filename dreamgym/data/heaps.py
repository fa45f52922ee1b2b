"""Looking through HDF5's global heap before HDF5 does.

Rows of variable length (Minari's JPEG images) lie in collections of the global heap, which have no
checksum. A few zeroed bytes in one let HDF5 walk it for ever, where no exception and no Ctrl-C gets
in; so the walk is made here first.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from dreamgym.data.errors import DatasetError

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
