"""A folder of native files, read as one dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dreamgym.data.columns import Column, JoinedColumn, MemoryColumn
from dreamgym.data.errors import DatasetError
from dreamgym.data.native import open_native
from dreamgym.data.source import Source
from dreamgym.data.table import EpisodeTable

PATTERN = "*.h5"


def open_shards(folder: Path, memory: int) -> Source:
    """Open every `*.h5` of a folder, in the order of their names.

    Args:
        folder: With at least one native file, all of the same spaces.
        memory: Bytes of observations to hold in memory at most, in all of them together.

    Raises:
        DatasetError: There is none, one of them is bad or of other spaces, or one is unfinished.
    """
    unfinished = sorted(folder.glob(f"{PATTERN}.partial"))
    if unfinished:
        raise DatasetError(
            "it is still being written, or its writer was killed",
            path=unfinished[0],
            remedy=f"wait, or save it with `dreamgym recover {unfinished[0]}`",
        )
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        raise DatasetError(
            f"it is a folder without any {PATTERN} file", path=folder, remedy="give the file itself"
        )
    sources: list[Source] = []
    try:
        for path in paths:
            sources.append(open_native(path, memory))
            memory -= sum(
                column.values.nbytes
                for column in sources[-1].observations.values()
                if isinstance(column, MemoryColumn)
            )
            _require_alike(sources[0], sources[-1])
        return _joined(folder, sources)
    except BaseException:
        for source in sources:
            source.close()
        raise


def _require_alike(first: Source, other: Source) -> None:
    a, b = first.metadata, other.metadata
    if (a.observation_space, a.action_space) != (b.observation_space, b.action_space):
        raise DatasetError(
            f"its spaces are not those of {first.path.name}",
            path=other.path,
            remedy="keep datasets of different environments in different folders",
        )


def _joined(folder: Path, sources: list[Source]) -> Source:
    counts = [source.table.num_rows for source in sources]
    offsets = np.cumsum([0, *counts[:-1]])
    columns = {
        name: _join([source.columns()[name] for source in sources], counts)
        for name in sources[0].columns()
    }
    *observations, action, reward = columns.values()

    def close() -> None:
        for source in sources:
            source.close()

    return Source(
        path=folder,
        metadata=sources[0].metadata,
        table=EpisodeTable.concatenate(
            [
                replace(source.table, start=source.table.start + offset)
                for source, offset in zip(sources, offsets.tolist(), strict=True)
            ]
        ),
        observations=dict(zip(sources[0].observations, observations, strict=True)),
        action=action,
        reward=reward,
        close=close,
    )


def _join(columns: list[Column], counts: list[int]) -> Column:
    held = [column for column in columns if isinstance(column, MemoryColumn)]
    if len(held) == len(columns):
        return MemoryColumn(np.concatenate([column.values for column in held]))
    return JoinedColumn(columns, counts)
