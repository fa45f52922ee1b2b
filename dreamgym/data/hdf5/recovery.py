"""Saving what a killed writer left."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamgym._files import partial_path
from dreamgym.data.hdf5 import schema
from dreamgym.data.hdf5.guard import hdf5_errors, is_being_written, open_growing, read_superblock
from dreamgym.data.hdf5.reader import open_columns, read_committed, read_metadata
from dreamgym.data.hdf5.schema import DatasetMetadata
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.data.storage import EpisodeTable
from dreamgym.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What was saved.

    Attributes:
        path: The dataset of all committed episodes; `None` where there was none.
        episodes: How many there are.
        steps: Transitions in all of them.
        damaged: Committed episodes whose checksum does not fit; they are only in `original`.
        tail: Rows that were written but never committed, beside; `None` where there were none.
        tail_rows: How many.
        original: What the writer left, untouched but for its new name.
    """

    path: Path | None
    episodes: int
    steps: int
    damaged: list[int]
    tail: Path | None
    tail_rows: int
    original: Path


def recover(path: str | os.PathLike[str]) -> Recovery:
    """Make a whole dataset of what a killed writer left; nothing is deleted.

    All committed episodes go, checked, to the dataset that was being made. Rows beyond the last of
    them, which belong to an episode that was being committed, go to `<name>.tail`, as they are. The
    file that the writer left is kept as `<name>.killed`.

    Args:
        path: The dataset that was being made, or its `.partial` file.

    Raises:
        DatasetError: A writer is still at work, there is nothing to recover, the dataset exists
            already, or there is no room for the copy.
    """
    partial, out = _names(Path(path))
    rescue = out.with_name(out.name + ".recovering")
    if is_being_written(partial):
        raise DatasetError(
            "its writer is alive", path=partial, remedy="wait until the recording ends"
        )
    killed, tail = out.with_name(out.name + ".killed"), out.with_name(out.name + ".tail")
    for taken in (out, killed, tail):
        if taken != partial and taken.exists():
            raise DatasetError("it exists already", path=taken, remedy="move it away first")
    with open_growing(partial) as file, hdf5_errors(partial):
        metadata = read_metadata(file, partial)
        for leftover in (rescue, partial_path(rescue)):  # of a recovery that was interrupted
            leftover.unlink(missing_ok=True)
        table, damaged = _copy_episodes(file, partial, metadata, rescue)
        tail_rows = _copy_tail(file, partial, metadata, table, tail)
    partial.rename(killed)
    kept = len(damaged) < len(table)
    if kept:
        rescue.rename(out)
    good = np.setdiff1d(np.arange(len(table)), damaged)
    return Recovery(
        path=out if kept else None,
        episodes=len(good),
        steps=int(table.length[good].sum()),
        damaged=damaged,
        tail=tail if tail_rows else None,
        tail_rows=tail_rows,
        original=killed,
    )


def _names(path: Path) -> tuple[Path, Path]:
    if path.name.endswith(".partial"):
        partial, out = path, path.with_name(path.name.removesuffix(".partial"))
    elif path.exists() and not read_superblock(path).closed:
        partial, out = path, path  # it was given its name by somebody else
    else:
        partial, out = partial_path(path), path
    if not partial.exists():
        raise DatasetError(
            "there is nothing to recover: no writer left it behind",
            path=partial,
            remedy="give the name of the dataset that was being recorded",
        )
    return partial, out


def _copy_episodes(
    file: h5py.File, path: Path, metadata: DatasetMetadata, out: Path
) -> tuple[EpisodeTable, list[int]]:
    """Copy the committed episodes to `out`; the table of all, and the numbers of the damaged."""
    table = read_committed(file, path)
    datasets = open_columns(file, path, metadata)
    damaged: list[int] = []
    with DatasetWriter(out, metadata) as writer:
        for episode in range(len(table)):
            header = table.header(episode)
            start, stop = header["start"], header["start"] + header["length"] + 1
            columns = {name: dataset[start:stop] for name, dataset in datasets.items()}
            if schema.episode_crc(header, columns.values()) == header["crc"]:
                writer.add_columns(columns, header)
            else:
                damaged.append(episode)
    return table, damaged


def _copy_tail(
    file: h5py.File, path: Path, metadata: DatasetMetadata, table: EpisodeTable, out: Path
) -> int:
    """Rows beyond the last committed episode, each column as far as it was written."""
    committed = table.num_rows
    tails: dict[str, Any] = {}
    for name, dataset in open_columns(file, path, metadata).items():
        if len(dataset) > committed:
            try:
                tails[name] = dataset[committed:]
            except (OSError, RuntimeError):  # it was cut off in the middle of this very write
                continue
    if not tails:
        return 0
    with h5py.File(out, "x") as beside:
        for name, rows in tails.items():
            beside[name] = rows
    return max(map(len, tails.values()))
