"""Save the episodes that a killed writer left."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamgym._files import local_path, partial_path
from dreamgym.data import layout
from dreamgym.data.episodes import Episode
from dreamgym.data.hdf5.guard import (
    hdf5_errors,
    is_being_written,
    open_growing,
    read_superblock,
)
from dreamgym.data.hdf5.journal import journal_path, read_journal
from dreamgym.data.hdf5.reader import open_columns, read_committed, read_metadata
from dreamgym.data.hdf5.schema import episode_columns
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.data.storage import EpisodeTable
from dreamgym.errors import DatasetError

_COMMIT_EVERY = 4096  # a recovery that is stopped starts again


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What `recover` saved.

    Attributes:
        path: the dataset with all good committed episodes; `None` if there was none.
        episodes: number of episodes in it.
        steps: number of transitions in it.
        damaged: indices of committed episodes with a wrong checksum; only `original` has them.
        tail: file with the rows that were written but never committed; `None` if there were none.
        tail_rows: number of those rows.
        original: the file that the writer left, unchanged but for its new name.
    """

    path: Path | None
    episodes: int
    steps: int
    damaged: list[int]
    tail: Path | None
    tail_rows: int
    original: Path


def recover(path: str | os.PathLike[str]) -> Recovery:
    """Make a complete dataset from what a killed writer left; nothing is deleted.

    All committed episodes with a correct checksum are copied to the dataset that was being
    recorded, and after them the open one of a recorder with `keep_open`, as incomplete; its file
    `<name>.open` is then removed. Rows after the last committed episode are copied to `<name>.tail`
    as they are. The file that the writer left is kept as `<name>.killed`.

    Args:
        path: the dataset that was being recorded, or its `.partial` file.

    Raises:
        DatasetError: the writer is still alive, there is nothing to recover, the dataset exists
            already, or there is no room for the copy.
    """
    partial, out = _find_paths(local_path(path))
    rescue = out.with_name(out.name + ".recovering")
    if is_being_written(partial):
        raise DatasetError(
            "its writer is alive", path=partial, remedy="wait until the recording ends"
        )
    killed, tail = out.with_name(out.name + ".killed"), out.with_name(out.name + ".tail")
    for target in (out, killed, tail):
        if target != partial and target.exists():
            raise DatasetError("it exists already", path=target, remedy="move it away first")
    with open_growing(partial) as file, hdf5_errors(partial):
        metadata = read_metadata(file, partial)
        for leftover in (rescue, partial_path(rescue)):  # from an interrupted recovery
            leftover.unlink(missing_ok=True)
        opened = _open_episode(out, metadata, len(read_committed(file, partial)))
        table, damaged = _copy_episodes(file, partial, metadata, rescue, opened)
        tail_rows = _copy_tail(file, partial, metadata, table, tail)
    partial.rename(killed)
    any_good = opened is not None or len(damaged) < len(table)
    if any_good:
        rescue.rename(out)
    journal_path(out).unlink(missing_ok=True)
    good = np.setdiff1d(np.arange(len(table)), damaged)
    return Recovery(
        path=out if any_good else None,
        episodes=len(good) + (opened is not None),
        steps=int(table.length[good].sum()) + (opened.length if opened is not None else 0),
        damaged=damaged,
        tail=tail if tail_rows else None,
        tail_rows=tail_rows,
        original=killed,
    )


def _find_paths(path: Path) -> tuple[Path, Path]:
    """Return the file that the writer left, and the path of the dataset to make."""
    if path.name.endswith(".partial"):
        partial, out = path, path.with_name(path.name.removesuffix(".partial"))
    elif path.exists() and not read_superblock(path).closed:
        partial, out = path, path  # the partial file was renamed by hand
    else:
        partial, out = partial_path(path), path
    if not partial.exists():
        raise DatasetError(
            "there is nothing to recover: no killed writer left this file",
            path=partial,
            remedy="give the name of the dataset that was being recorded",
        )
    return partial, out


def _open_episode(path: Path, metadata: DatasetMetadata, committed: int) -> Episode | None:
    """Return the open episode of a journal, unless it is one of those that were committed.

    Raises:
        DatasetError: it is damaged.
    """
    found = read_journal(path, metadata)
    if found is None or found[0] < committed:
        return None
    try:
        episode_columns(found[1], metadata)
    except DatasetError as error:
        raise DatasetError(
            error.problem,
            path=journal_path(path),
            key=error.key,
            row=error.row,
            remedy="move this file away, and recover the committed episodes",
        ) from None
    return found[1]


def _copy_episodes(
    file: h5py.File, path: Path, metadata: DatasetMetadata, out: Path, opened: Episode | None
) -> tuple[EpisodeTable, list[int]]:
    """Copy the good committed episodes to `out`, and add the one that was open.

    Returns:
        The table of all committed episodes, and the indices of the damaged ones.
    """
    table = read_committed(file, path)
    datasets = open_columns(file, path, metadata)
    damaged: list[int] = []
    with DatasetWriter(out, metadata, commit_every=_COMMIT_EVERY) as writer:
        for episode in range(len(table)):
            header = table.header(episode)
            start, stop = header["start"], header["start"] + header["length"] + 1
            columns = {name: dataset[start:stop] for name, dataset in datasets.items()}
            if layout.episode_crc(header, columns.values()) == header["crc"]:
                writer.add_columns(columns, header)
            else:
                damaged.append(episode)
        if opened is not None:
            writer.add(opened)
    return table, damaged


def _copy_tail(
    file: h5py.File, path: Path, metadata: DatasetMetadata, table: EpisodeTable, out: Path
) -> int:
    """Copy the rows after the last committed episode, each column as far as it was written.

    Returns:
        The number of rows of the longest column.
    """
    committed = table.num_rows
    tails: dict[str, Any] = {}
    for name, dataset in open_columns(file, path, metadata).items():
        if len(dataset) > committed:
            try:
                tails[name] = dataset[committed:]
            except (OSError, RuntimeError):  # the writer was killed during this very write
                continue
    if not tails:
        return 0
    with h5py.File(out, "x") as tail_file:
        for name, rows in tails.items():
            tail_file[name] = rows
    return max(map(len, tails.values()))
