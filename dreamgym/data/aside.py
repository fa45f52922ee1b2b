"""Files are written aside, and get their names when they are whole."""

from __future__ import annotations

import os
from pathlib import Path

from dreamgym.data.errors import DatasetError


def partial_path(path: Path) -> Path:
    """Where a dataset lies while it is being written."""
    return path.with_name(path.name + ".partial")


def refuse_existing(path: Path) -> None:
    """Raise `DatasetError` where `path`, or a recording that was to become it, already exists."""
    if path.exists():
        raise DatasetError(
            "it exists already", path=path, remedy="choose another name, or move it away"
        )
    partial = partial_path(path)
    if partial.exists():
        raise DatasetError(
            "another recording is writing it, or was killed while it did",
            path=partial,
            remedy=f"wait for it, or save its episodes with `dreamgym recover {partial}`",
        )


def refuse_unfinished(path: Path) -> None:
    """Raise `DatasetError` where `path` is not there, but a recording that was to become it is."""
    partial = partial_path(path)
    if not path.exists() and partial.exists():
        raise DatasetError(
            f"it is still being written, or its writer was killed; it lies in {partial}",
            path=path,
            remedy="read what is there with Dataset.snapshot, or save it with "
            f"`dreamgym recover {partial}`",
        )


def sync(path: Path) -> None:
    """Force a file onto the disk, so that its new name never stands for an older content."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
