"""The open episode of a recording, in a file beside the dataset, so that a kill does not lose it.

A dataset grows by whole episodes, since a commit takes milliseconds. A journal, `<name>.open`, gets
every step of the open episode by a single write, which the system keeps when the process is killed:

    header   which dataset, number of the episode in it, seed, index of the environment
    rows     the observation, and the action, reward and flags of the step that led to it
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym.data import layout
from dreamgym.data.episodes import Episode
from dreamgym.data.hdf5.schema import row_layout
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.errors import DatasetError

_HEADER = np.dtype([("dataset", "<u4"), ("episode", "<i8"), ("seed", "<i8"), ("env_index", "<i8")])
_FLAGS = ("terminated", "truncated")


def journal_path(path: Path) -> Path:
    """Return the path of the journal of a dataset."""
    return path.with_name(path.name + ".open")


class Journal:
    """Writes the open episode of a recording step by step.

    Args:
        path: the dataset that is being recorded.
        metadata: its metadata.

    Raises:
        DatasetError: the file cannot be created.
    """

    def __init__(self, path: Path, metadata: DatasetMetadata) -> None:
        self._path = journal_path(path)
        self._dataset = zlib.crc32(metadata.created.encode())
        self._keys = list(metadata.observation_columns())
        self._row = np.zeros((), _row_dtype(metadata))
        try:
            self._file = self._path.open("wb", buffering=0)
        except OSError as error:
            raise self._error(error) from error

    def begin(self, episode: int, seed: int | None, env_index: int, observation: Any) -> None:
        """Start an episode, in place of the last one.

        Args:
            episode: its number in the dataset.
            seed: seed of its reset.
            env_index: index of its environment.
            observation: its first observation.
        """
        number = layout.NO_SEED if seed is None else int(seed)
        header = np.array((self._dataset, episode, number, env_index), _HEADER)
        for name in (layout.ACTION_KEY, layout.REWARD_KEY, *_FLAGS):
            self._row[name] = 0
        self._put(observation)
        self._file.seek(0)
        self._file.truncate()
        self._write(header.tobytes() + self._row.tobytes())

    def append(
        self, action: Any, observation: Any, reward: Any, terminated: bool, truncated: bool
    ) -> None:
        """Add a step of which every value is known to fit.

        Raises:
            DatasetError: the disk is full.
        """
        row = self._row
        row[layout.ACTION_KEY], row[layout.REWARD_KEY] = action, reward
        row["terminated"], row["truncated"] = terminated, truncated
        self._put(observation)
        self._write(row.tobytes())

    def close(self) -> None:
        """Remove the file: the episode is in the dataset."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _put(self, observation: Any) -> None:
        for key in self._keys:
            part = observation[key] if isinstance(observation, dict) else observation
            self._row[layout.observation_path(key)] = part

    def _write(self, content: bytes) -> None:
        try:
            written = self._file.write(content)
        except OSError as error:
            raise self._error(error) from error
        if written != len(content):
            raise self._error("the disk is full")

    def _error(self, reason: object) -> DatasetError:
        return DatasetError(
            f"the open episode cannot be written ({reason})",
            path=self._path,
            remedy="make room, or record without keeping the open episode",
        )


def read_journal(path: Path, metadata: DatasetMetadata) -> tuple[int, Episode] | None:
    """Return the number and the episode of a dataset's journal; None if there is no whole step.

    Args:
        path: the dataset.
        metadata: its metadata.
    """
    try:
        content = journal_path(path).read_bytes()
    except FileNotFoundError:
        return None
    dtype = _row_dtype(metadata)
    count = max(0, len(content) - _HEADER.itemsize) // dtype.itemsize  # the last may be cut off
    if count < 2:
        return None
    header = np.frombuffer(content, _HEADER, 1)[0]
    if header["dataset"] != zlib.crc32(metadata.created.encode()):  # of an earlier dataset
        return None
    rows = np.frombuffer(content, dtype, count, _HEADER.itemsize)
    observations = {
        key: rows[layout.observation_path(key)] for key in metadata.observation_columns()
    }
    terminated, truncated = (bool(rows[flag][-1]) for flag in _FLAGS)
    return int(header["episode"]), Episode(
        observations=observations,
        actions=rows[layout.ACTION_KEY][1:],
        rewards=rows[layout.REWARD_KEY][1:],
        terminated=terminated,
        truncated=truncated,
        complete=terminated or truncated,
        seed=None if header["seed"] == layout.NO_SEED else int(header["seed"]),
        env_index=int(header["env_index"]),
    )


def _row_dtype(metadata: DatasetMetadata) -> np.dtype[Any]:
    columns = [
        (name, dtype, shape)
        for name, (shape, dtype) in row_layout(metadata).items()
        if not name.startswith(layout.EPISODE_GROUP)
    ]
    return np.dtype([*columns, *((flag, "?") for flag in _FLAGS)])
