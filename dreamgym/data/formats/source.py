"""Open a dataset of any format for reading, without a conversion."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dreamgym._files import refuse_unfinished
from dreamgym.data import layout
from dreamgym.data.episodes import Episode
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.formats.registry import read_foreign
from dreamgym.data.hdf5.reader import open_native, open_shards
from dreamgym.data.hdf5.schema import episode_columns
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.data.storage import Column, EpisodeColumn, EpisodeTable, MemoryColumn, Source
from dreamgym.errors import DatasetError

_SPILLED_AT_ONCE = 4096  # episodes


def open_source(
    path: Path,
    memory: int,
    foreign: ForeignOptions | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    *,
    spill: bool = False,
) -> tuple[Source, list[str]]:
    """Open a dataset of any format: a native file, a folder of shards, or a foreign dataset.

    A foreign dataset is read from end to end, and its episodes are checked.

    Args:
        path: a file or a folder.
        memory: bytes of observations to hold in memory at most. Larger observations are read on
            demand, if the format can read single rows. Actions and rewards are always in memory.
        foreign: what the user knows about a foreign dataset and the dataset does not say.
        on_bad: what to do with a bad episode of a foreign dataset: `"raise"`, or `"skip"` it.
        spill: whether to write observations that need more than `memory` to a temporary file, where
            the format can only read whole episodes, instead of refusing them.

    Returns:
        The source, which the caller closes, and a message for each skipped episode (native episodes
        are not checked here).

    Raises:
        DatasetError: the format is unknown, the dataset is still being written or damaged, an
            episode is bad, or the observations need more than `memory` and the format can only read
            whole episodes.
        UnsupportedSpaceError: the dataset has a space that this version does not support.
    """
    refuse_unfinished(path)
    probe = Probe(path)
    try:
        dataset = read_foreign(probe, foreign or ForeignOptions())
        if dataset is not None:
            source, skipped = _read_foreign(dataset, path, memory, on_bad, spill)
            if source.in_memory:
                dataset.close()
            return source, skipped
    except BaseException:
        probe.close()
        raise
    probe.close()
    source = (open_shards if path.is_dir() else open_native)(path, memory)
    if foreign is not None and foreign.observation_space is not None:
        source = _with_observation_space(source, foreign.observation_space)
    return source, []


def _with_observation_space(source: Source, space: gym.Space[Any]) -> Source:
    """Return a native source with another observation space, which differs in its bounds only."""
    recorded, metadata = source.metadata, replace(source.metadata, observation_space=space)
    if {key: (box.shape, box.dtype) for key, box in recorded.observation_columns().items()} != {
        key: (box.shape, box.dtype) for key, box in metadata.observation_columns().items()
    }:
        source.close()
        raise DatasetError(
            f"its observation space is {recorded.observation_space}, not {space}",
            path=source.path,
            remedy="give a space that differs from the recorded one in its bounds only",
        )
    return replace(source, metadata=metadata)


def _read_foreign(
    foreign: ForeignDataset, path: Path, memory: int, on_bad: str, spill: bool
) -> tuple[Source, list[str]]:
    parts: dict[str, list[Array]] = {}
    headers: list[dict[str, int]] = []
    numbers: list[int] = []
    skipped: list[str] = []
    num_rows, observation_bytes = 0, 0
    for number, episode in enumerate(foreign.episodes()):
        try:
            if isinstance(episode, DatasetError):
                raise episode
            columns = episode_columns(episode, foreign.metadata)
        except DatasetError as error:
            problem = error.at(path=path, episode=number)
            if on_bad == "raise":
                raise problem from error.__cause__
            skipped.append(str(problem))
            continue
        observations = [name for name in columns if name.startswith(layout.OBSERVATION_GROUP)]
        observation_bytes += sum(columns[name].nbytes for name in observations)
        if observation_bytes > memory and foreign.read_rows is None and spill:
            return _spilled(foreign, path)
        if observation_bytes > memory and foreign.read_rows is None:
            raise DatasetError(
                f"its observations need more than the {memory:,} bytes of memory allowed",
                path=path,
                remedy="convert it with `dreamgym convert`, or allow more memory",
            )
        headers.append(_make_header(episode, num_rows, columns))
        numbers.append(number)
        num_rows += episode.length + 1
        for name, values in columns.items():
            if observation_bytes > memory and name in observations:
                parts[name] = [values[:0]]  # stays in the file; drop what was read before, too
            else:
                parts.setdefault(name, []).append(values)
    if not headers:
        first = f", the first: {skipped[0]}" if skipped else ""
        raise DatasetError(f"it has no good episode ({len(skipped)} bad ones{first})", path=path)
    source = _make_source(foreign, path, parts, headers)
    if observation_bytes > memory and foreign.read_rows is not None:
        source = _read_on_demand(source, foreign.read_rows, foreign.close, numbers)
    return source, skipped


def _spilled(foreign: ForeignDataset, path: Path) -> tuple[Source, list[str]]:
    """Write the good episodes to a temporary native dataset, and return that as the source.

    Raises:
        DatasetError: there is no room for it.
    """
    folder = tempfile.TemporaryDirectory(prefix="dreamgym-", ignore_cleanup_errors=True)
    skipped: list[str] = []
    copy = Path(folder.name) / "copy.h5"
    try:
        with DatasetWriter(copy, foreign.metadata, commit_every=_SPILLED_AT_ONCE) as writer:
            for number, episode in enumerate(foreign.episodes()):
                try:
                    if isinstance(episode, DatasetError):
                        raise episode
                    writer.add(episode)
                except DatasetError as error:
                    if isinstance(error.__cause__, OSError):  # from the disk
                        raise
                    skipped.append(str(_moved(error, path, number)))
        source = open_native(copy, 0)
    except BaseException:
        folder.cleanup()
        raise

    def close() -> None:
        source.close()
        folder.cleanup()
        foreign.close()

    return replace(
        source,
        path=path,
        metadata=foreign.metadata,
        convention=foreign.convention,
        close=close,
    ), skipped


def _moved(error: DatasetError, path: Path, episode: int) -> DatasetError:
    """Return an error of the temporary copy as one of the dataset itself."""
    return DatasetError(
        error.problem,
        path=path,
        key=error.key,
        episode=episode,
        row=error.row,
        remedy=error.remedy,
    )


def _make_header(episode: Episode, start: int, columns: dict[str, Array]) -> dict[str, int]:
    """Return the episode's entries in `EpisodeTable`."""
    header = {
        "start": start,
        "length": episode.length,
        "terminated": int(episode.terminated),
        "truncated": int(episode.truncated),
        "complete": int(episode.complete),
        "env_index": episode.env_index,
        "seed": layout.NO_SEED if episode.seed is None else episode.seed,
    }
    return header | {"crc": layout.episode_crc(header, columns.values())}


def _make_source(
    foreign: ForeignDataset,
    path: Path,
    parts: dict[str, list[Array]],
    headers: list[dict[str, int]],
) -> Source:
    columns: dict[str, Column] = {
        name: MemoryColumn(np.concatenate(values)) for name, values in parts.items()
    }
    table = EpisodeTable(
        **{
            name: np.array([header[name] for header in headers], dtype=dtype)
            for name, dtype in layout.EPISODE_COLUMNS.items()
        }
    )
    boxes = foreign.metadata.observation_columns()
    return Source(
        path=path,
        metadata=foreign.metadata,
        table=table,
        observations={key: columns[layout.observation_path(key)] for key in boxes},
        action=columns[layout.ACTION_KEY],
        reward=columns[layout.REWARD_KEY],
        convention=foreign.convention,
    )


def _read_on_demand(
    source: Source,
    read_rows: Callable[[int, str | None, slice], Array],
    close: Callable[[], None],
    numbers: list[int],
) -> Source:
    """Return the source with its observations left in the file.

    Args:
        source: the source, with empty columns of observations.
        read_rows: see `ForeignDataset.read_rows`.
        close: closes the files.
        numbers: number of each good episode among all episodes of the file.
    """
    is_dict = isinstance(source.metadata.observation_space, spaces.Dict)

    def make_column(key: str, empty: Array) -> Column:
        def read(episode: int, start: int, stop: int) -> Array:
            return read_rows(numbers[episode], key if is_dict else None, slice(start, stop))

        return EpisodeColumn(read, source.table.start, empty)

    columns = {
        key: make_column(key, empty.read(0, 0)) for key, empty in source.observations.items()
    }
    return replace(source, observations=columns, close=close)
