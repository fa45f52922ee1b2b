"""Foreign datasets, read without a conversion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data.episodes import Episode
from dreamgym.data.formats import Foreign, ForeignOptions, open_foreign
from dreamgym.data.hdf5 import schema
from dreamgym.data.hdf5.encoding import episode_columns
from dreamgym.data.hdf5.guard import SIGNATURE, hdf5_errors, open_file, plain_attributes
from dreamgym.data.storage import Column, EpisodeColumn, EpisodeTable, MemoryColumn, Source
from dreamgym.errors import DatasetError

Array = NDArray[Any]


def is_foreign(path: Path) -> bool:
    """Whether a path that can be read is of another format than ours."""
    if path.is_dir():
        return not any(path.glob("*.h5")) and (
            any(path.glob("*.npz")) or any(path.glob("**/main_data.hdf5"))
        )
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(len(SIGNATURE))
    if head.startswith(b"PK\x03\x04"):
        return True
    if head != SIGNATURE:
        return False
    with open_file(path) as hdf5, hdf5_errors(path):
        ours = "format" in plain_attributes(hdf5, path) or "steps" in hdf5 or "episodes" in hdf5
    return not ours


def open_directly(
    path: Path, memory: int, options: ForeignOptions, on_bad: Literal["raise", "skip"]
) -> tuple[Source, list[str]]:
    """Read a foreign dataset from end to end, and hold it in memory where it fits.

    Args:
        path: A file or folder.
        memory: Bytes of observations to hold at most. Larger ones are read when asked for, where
            the format can give single rows; actions and rewards are always held.
        options: What it does not say.
        on_bad: As for `Dataset`.

    Returns:
        The source, and what was skipped.

    Raises:
        DatasetError: No format fits, an episode is bad, or it is larger than `memory` in a
            format that only gives whole episodes.
    """
    foreign = open_foreign(path, options)
    try:
        source, skipped = _read(foreign, path, memory, on_bad)
    except BaseException:
        foreign.close()
        raise
    if source.in_memory:
        foreign.close()
    return source, skipped


def _read(foreign: Foreign, path: Path, memory: int, on_bad: str) -> tuple[Source, list[str]]:
    parts: dict[str, list[Array]] = {}
    headers: list[dict[str, int]] = []
    skipped: list[str] = []
    rows, held, numbers = 0, 0, []
    for number, episode in enumerate(foreign.episodes()):
        try:
            columns = episode_columns(episode, foreign.metadata)
        except DatasetError as error:
            placed = error.at(path=path, episode=number)
            if on_bad == "raise":
                raise placed from error.__cause__
            skipped.append(str(placed))
            continue
        observed = [name for name in columns if name.startswith(schema.OBSERVATION_GROUP)]
        held += sum(columns[name].nbytes for name in observed)
        if held > memory and foreign.rows is None:
            raise DatasetError(
                f"it is larger than the {memory:,} bytes of memory it may take",
                path=path,
                remedy="convert it with `dreamgym convert`, or allow more memory",
            )
        headers.append(_header(episode, rows, columns))
        numbers.append(number)
        rows += episode.length + 1
        for name, values in columns.items():
            if held > memory and name in observed:
                parts[name] = [values[:0]]  # it stays in the file, and so does what came before
            else:
                parts.setdefault(name, []).append(values)
    if not headers:
        raise DatasetError(f"it holds no good episode ({len(skipped)} bad ones)", path=path)
    source = _source(foreign, path, parts, headers)
    return source if held <= memory else _left(source, foreign, numbers), skipped


def _left(source: Source, foreign: Foreign, numbers: list[int]) -> Source:
    """The same with its observations left in the file."""
    is_dict = isinstance(source.metadata.observation_space, spaces.Dict)
    rows = foreign.rows
    if rows is None:
        raise DatasetError("it gives only whole episodes", path=source.path)

    def column(key: str, empty: Array) -> Column:
        def read(episode: int, start: int, stop: int) -> Array:
            return rows(numbers[episode], key if is_dict else None, slice(start, stop))

        return EpisodeColumn(read, source.table.start, empty)

    columns = {key: column(key, held.read(0, 0)) for key, held in source.observations.items()}
    return replace(source, observations=columns, close=foreign.close)


def _header(episode: Episode, start: int, columns: dict[str, Array]) -> dict[str, int]:
    header = {
        "start": start,
        "length": episode.length,
        "terminated": int(episode.terminated),
        "truncated": int(episode.truncated),
        "complete": int(episode.complete),
        "env_index": episode.env_index,
        "seed": schema.NO_SEED if episode.seed is None else episode.seed,
    }
    return header | {"crc": schema.episode_crc(header, columns.values())}


def _source(
    foreign: Foreign, path: Path, parts: dict[str, list[Array]], headers: list[dict[str, int]]
) -> Source:
    columns: dict[str, Column] = {
        name: MemoryColumn(np.concatenate(values)) for name, values in parts.items()
    }
    table = EpisodeTable(
        **{
            name: np.array([header[name] for header in headers], dtype=dtype)
            for name, dtype in schema.EPISODE_COLUMNS.items()
        }
    )
    boxes = foreign.metadata.observation_boxes()
    return Source(
        path=path,
        metadata=foreign.metadata,
        table=table,
        observations={key: columns[schema.observation_path(key)] for key in boxes},
        action=columns[schema.ACTION_KEY],
        reward=columns[schema.REWARD_KEY],
        convention=foreign.convention,
    )
