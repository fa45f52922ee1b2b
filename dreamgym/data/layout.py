"""The row layout of a dataset: names, dtypes and order of its columns, and the episode checksum.

An episode of `T` actions takes `T + 1` rows, and one episode follows the other:

    steps/obs/<key>   (R, *shape)   R = sum(T + 1) over the episodes
    steps/action      (R, ...)      row t leaves observation t; the last row of an episode is zero
    steps/reward      (R,)          float32; the last row of an episode is zero
    episodes/<name>   (E,)          one entry per episode, see `EPISODE_COLUMNS`

Every dataset, native or foreign, is read into this layout. `data.hdf5` stores it in a file.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dreamgym.errors import DatasetError

OBSERVATION_GROUP = "steps/obs"
ACTION_KEY = "steps/action"
REWARD_KEY = "steps/reward"
EPISODE_GROUP = "episodes"

# A Dict observation has the keys of its space; a Box has one column, under this key.
SINGLE_KEY = "observation"

REWARD_DTYPE = np.dtype("<f4")

# Written after the rows of an episode: it is committed once all of these have its entry.
EPISODE_COLUMNS: dict[str, np.dtype[Any]] = {
    "start": np.dtype("<i8"),
    "length": np.dtype("<i8"),
    "terminated": np.dtype("?"),
    "truncated": np.dtype("?"),
    "complete": np.dtype("?"),
    "env_index": np.dtype("<i4"),
    "seed": np.dtype("<i8"),
    "crc": np.dtype("<u4"),
}

_CHECKED = [name for name in EPISODE_COLUMNS if name not in ("start", "crc")]

# Stands for "no seed" in the `seed` column.
NO_SEED = -1


def observation_columns(space: gym.Space[Any]) -> dict[str, spaces.Box]:
    """Return the Box of each observation column by key; a plain Box has the key `SINGLE_KEY`."""
    if isinstance(space, spaces.Dict):
        return {key: box for key, box in space.spaces.items() if isinstance(box, spaces.Box)}
    if not isinstance(space, spaces.Box):
        raise DatasetError(f"{space} is not an observation space; expected a Box or a Dict of Box")
    return {SINGLE_KEY: space}


def observation_path(key: str) -> str:
    """Return the column name of an observation key, with HDF5's path characters escaped."""
    name = quote(key, safe=" !#$&'()*+,:;=?@[]") if key.strip(".") else key.replace(".", "%2E")
    return f"{OBSERVATION_GROUP}/{name}"


def index_rows(observations: Any, index: Any) -> Any:
    """Index the first axis of observations: of an array, or of each array in a dict by key."""
    if isinstance(observations, Mapping):
        return {key: index_rows(part, index) for key, part in observations.items()}
    return observations[index]


def action_layout(space: gym.Space[Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of one stored action: int64 for Discrete, else the space's own."""
    if isinstance(space, spaces.Discrete):
        return (), np.dtype("<i8")
    if space.shape is None or space.dtype is None:
        raise DatasetError(f"{space} is not an action space: it has no shape or no dtype")
    return tuple(space.shape), np.dtype(space.dtype).newbyteorder("<")


def episode_crc(header: Mapping[str, int], columns: Iterable[np.ndarray[Any, Any]]) -> int:
    """Return the CRC-32 of one episode: its length, flags, index and seed, then its stored rows.

    Args:
        header: entries of the episode by name; `start` and `crc` are ignored.
        columns: the `T + 1` rows of every observation key in the space's order, of the action and
            of the reward.
    """
    crc = zlib.crc32(np.array([int(header[name]) for name in _CHECKED], dtype="<i8").tobytes())
    for rows in columns:
        crc = zlib.crc32(_little_bytes(rows), crc)
    return crc


def episode_crcs(
    table: Mapping[str, np.ndarray[Any, Any]],
    starts: np.ndarray[Any, Any],
    columns: Iterable[np.ndarray[Any, Any]],
) -> np.ndarray[Any, Any]:
    """Return the CRC-32 of several episodes that follow one another, `(E,)`; see `episode_crc`.

    Args:
        table: `(E,)` entries of the episodes by name.
        starts: `(E,)` first row of each episode in `columns`.
        columns: rows of all of them, in the order of `episode_crc`.
    """
    headers = np.stack([np.asarray(table[name]).astype("<i8") for name in _CHECKED], axis=1)
    crcs = [zlib.crc32(header) for header in headers]
    stops = starts + table["length"] + 1
    for rows in columns:
        if not len(rows):
            continue
        content, size = _little_bytes(rows), rows[:1].nbytes
        places = zip((starts * size).tolist(), (stops * size).tolist(), strict=True)
        crcs = [
            zlib.crc32(content[start:stop], crc)
            for crc, (start, stop) in zip(crcs, places, strict=True)
        ]
    return np.array(crcs, dtype=np.uint32)


def _little_bytes(rows: np.ndarray[Any, Any]) -> memoryview:
    little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data
