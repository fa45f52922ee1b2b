"""The native format, version 1: names, dtypes, chunks, and what the attributes say.

Field by field in `docs/data.md`. In short:

    attributes      format, schema_version, observation_space, action_space, env_spec, env_id,
                    policy, seed, created, versions
    /steps/obs/*    (R, *shape)   R = sum(T + 1) over the episodes
    /steps/action   (R, ...)      row t leaves observation t; the last row of an episode is zero
    /steps/reward   (R,)          float32, likewise
    /episodes/*     (E,)          start, length, terminated, truncated, complete, env_index, seed,
                                  crc
"""

from __future__ import annotations

import json
import math
import platform
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import quote

import gymnasium as gym
import h5py
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data.spaces import check_supported, space_from_json, space_to_json
from dreamgym.errors import DatasetError

FORMAT = "dreamgym"


SCHEMA_VERSION = 1


OBSERVATION_GROUP = "steps/obs"


ACTION_KEY = "steps/action"


REWARD_KEY = "steps/reward"


EPISODE_GROUP = "episodes"


# An episode counts once all of these are there, which are written after its rows.
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


NO_SEED = -1


REWARD_DTYPE = np.dtype("<f4")


# A chunk of small rows has this many; of images, the fewest that keep a random window cheap.
MAX_CHUNK_ROWS = 1024


MIN_CHUNK_ROWS = 16


CHUNK_BYTES = 64 << 10


# A Dict observation has its keys; any other space has one dataset, called this.
SINGLE_KEY = "observation"


@dataclass(frozen=True, kw_only=True)
class DatasetMetadata:
    """What a dataset says about itself.

    Attributes:
        observation_space: Of one environment: Box, or Dict of Box.
        action_space: Of one environment: Discrete, MultiDiscrete or Box.
        env_spec: JSON of Gymnasium's `EnvSpec`, `None` where there is none.
        env_id: Id of the environment, `None` where there is none.
        policy: What chose the actions, in words.
        seed: Seed of the whole recording, `None` where there was none.
        created: UTC time in ISO 8601.
        versions: Versions of the libraries that wrote it.
    """

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    env_spec: str | None = None
    env_id: str | None = None
    policy: str = "unspecified"
    seed: int | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    versions: Mapping[str, str] = field(default_factory=lambda: library_versions())

    def __post_init__(self) -> None:
        check_supported(self.observation_space, "observation")
        check_supported(self.action_space, "action")

    @classmethod
    def of_env(
        cls, env: gym.Env[Any, Any], *, policy: str = "unspecified", seed: int | None = None
    ) -> DatasetMetadata:
        """What an environment says about itself."""
        return cls(
            observation_space=env.observation_space,
            action_space=env.action_space,
            env_spec=spec_json(env.spec),
            env_id=None if env.spec is None else env.spec.id,
            policy=policy,
            seed=seed,
        )

    def observation_boxes(self) -> dict[str, spaces.Box]:
        """The Box of every observation key; a space that is no Dict has one key, `SINGLE_KEY`."""
        return boxes_of(self.observation_space)

    def with_keys(self, keys: Sequence[str]) -> DatasetMetadata:
        """The same with some keys of its Dict observation space, in the order of that."""
        chosen = [(key, box) for key, box in self.observation_boxes().items() if key in keys]
        return replace(self, observation_space=spaces.Dict(chosen))

    def to_attributes(self) -> dict[str, str | int]:
        """As the HDF5 root attributes."""
        attributes: dict[str, str | int] = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "observation_space": json.dumps(space_to_json(self.observation_space)),
            "action_space": json.dumps(space_to_json(self.action_space)),
            "env_spec": self.env_spec or "null",
            "env_id": self.env_id or "",
            "policy": self.policy,
            "seed": json.dumps(self.seed),
            "created": self.created,
            "versions": json.dumps(dict(self.versions)),
        }
        return attributes

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> DatasetMetadata:
        """From the HDF5 root attributes.

        Raises:
            DatasetError: An attribute is missing or malformed; `key` names it.
            UnsupportedSpaceError: A space is of an unsupported type.
        """
        spec = _json_attribute(attributes, "env_spec")
        seed = _json_attribute(attributes, "seed")
        versions = _json_attribute(attributes, "versions")
        if not isinstance(versions, dict):
            raise DatasetError("it is no JSON object", key="@versions")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise DatasetError(f"it is {seed!r}, neither a whole number nor null", key="@seed")
        return cls(
            observation_space=_space_attribute(attributes, "observation_space"),
            action_space=_space_attribute(attributes, "action_space"),
            env_spec=None if spec is None else _text_attribute(attributes, "env_spec"),
            env_id=_text_attribute(attributes, "env_id") or None,
            policy=_text_attribute(attributes, "policy"),
            seed=seed,
            created=_text_attribute(attributes, "created"),
            versions={str(name): str(value) for name, value in versions.items()},
        )


def boxes_of(space: gym.Space[Any]) -> dict[str, spaces.Box]:
    """The Box of every key of an observation space; `SINGLE_KEY` for one that is no Dict."""
    if isinstance(space, spaces.Dict):
        return {key: box for key, box in space.spaces.items() if isinstance(box, spaces.Box)}
    if not isinstance(space, spaces.Box):
        raise DatasetError(f"{space} is no observation space; it must be a Box or a Dict of Box")
    return {SINGLE_KEY: space}


def observation_path(key: str) -> str:
    """Where an observation key lies in the file; signs that HDF5 reads as paths are escaped."""
    name = quote(key, safe=" !#$&'()*+,:;=?@[]") if key.strip(".") else key.replace(".", "%2E")
    return f"{OBSERVATION_GROUP}/{name}"


def chunk_rows(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """How many rows of this kind go into one chunk."""
    rows = CHUNK_BYTES // (math.prod(shape) * dtype.itemsize)
    return max(MIN_CHUNK_ROWS, min(MAX_CHUNK_ROWS, rows))


def action_layout(space: gym.Space[Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of one action on disk: Discrete as int64, others in their space's dtype."""
    if isinstance(space, spaces.Discrete):
        return (), np.dtype("<i8")
    if space.shape is None or space.dtype is None:
        raise DatasetError(f"{space} is no action space that has a shape")
    return tuple(space.shape), np.dtype(space.dtype).newbyteorder("<")


def episode_crc(header: Mapping[str, int], columns: Iterable[np.ndarray[Any, Any]]) -> int:
    """CRC-32 of one episode: its length, flags, index and seed, then its rows as they are stored.

    Args:
        header: Columns of `/episodes` but `start` and `crc`.
        columns: The `T + 1` rows of every observation key in the space's order, of action and of
            reward.
    """
    names = [name for name in EPISODE_COLUMNS if name not in ("start", "crc")]
    crc = zlib.crc32(np.array([int(header[name]) for name in names], dtype="<i8").tobytes())
    for rows in columns:
        little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
        crc = zlib.crc32(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data, crc)
    return crc


def library_versions() -> dict[str, str]:
    """Versions of what had a hand in the data."""
    try:
        own = version("dreamgym")
    except PackageNotFoundError:
        own = "unknown"
    return {
        "dreamgym": own,
        "gymnasium": gym.__version__,
        "numpy": np.__version__,
        "h5py": h5py.version.version,
        "hdf5": h5py.version.hdf5_version,
        "python": platform.python_version(),
    }


def spec_json(spec: Any) -> str | None:
    """JSON of Gymnasium's `EnvSpec`; `None` where there is none, or JSON cannot hold it."""
    if spec is None:
        return None
    try:
        return str(spec.to_json())
    except (TypeError, ValueError):
        return None  # it holds something that JSON cannot; the id is kept beside it


def _text_attribute(attributes: Mapping[str, Any], name: str) -> str:
    if name not in attributes:
        raise DatasetError("the attribute is missing, or no text of fixed length", key=f"@{name}")
    value = attributes[name]
    if not isinstance(value, bytes):
        raise DatasetError(f"the attribute is {type(value).__name__}, not text", key=f"@{name}")
    return value.decode("utf-8", errors="replace")


def _json_attribute(attributes: Mapping[str, Any], name: str) -> Any:
    text = _text_attribute(attributes, name)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"the attribute is no JSON ({error})", key=f"@{name}") from error


def _space_attribute(attributes: Mapping[str, Any], name: str) -> gym.Space[Any]:
    try:
        return space_from_json(_json_attribute(attributes, name))
    except DatasetError as error:
        raise DatasetError(error.problem, key=error.key or f"@{name}") from error


Array = NDArray[Any]


PAGE_BYTES = 4096


def row_layout(metadata: DatasetMetadata) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of one row of every dataset in a native file, by name."""
    layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        observation_path(key): (box.shape, np.dtype(box.dtype).newbyteorder("<"))
        for key, box in metadata.observation_boxes().items()
    }
    layout[ACTION_KEY] = action_layout(metadata.action_space)
    layout[REWARD_KEY] = (), REWARD_DTYPE
    for column, dtype in EPISODE_COLUMNS.items():
        layout[f"{EPISODE_GROUP}/{column}"] = (), dtype
    return layout


def alignment(metadata: DatasetMetadata) -> dict[str, int]:
    """How a file of such rows is to be opened: chunks that fill whole pages begin on one.

    Reading by position is a tenth faster from there. Chunks that do not fill whole pages are better
    left without gaps, one after the other.
    """
    sizes = [
        chunk_rows(shape, dtype) * math.prod(shape) * dtype.itemsize
        for shape, dtype in row_layout(metadata).values()
    ]
    if max(sizes) % PAGE_BYTES:
        return {}
    return {"alignment_threshold": max(sizes), "alignment_interval": PAGE_BYTES}


def create_layout(file: h5py.File, metadata: DatasetMetadata) -> dict[str, h5py.Dataset]:
    """Attributes and empty datasets of a new file; the datasets by name."""
    for name, value in metadata.to_attributes().items():
        set_attribute(file, name, value)
    return {
        name: file.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(chunk_rows(shape, dtype), *shape),
            dtype=dtype,
        )
        for name, (shape, dtype) in row_layout(metadata).items()
    }


def set_attribute(group: h5py.Group, name: str, value: str | int) -> None:
    """Set an attribute; text in the object header itself, under its checksum.

    Text of variable length would lie in HDF5's global heap, which has no checksum, and a few zeroed
    bytes in it let HDF5 loop for ever.
    """
    if isinstance(value, str):
        text = value.encode()
        dtype = h5py.string_dtype("utf-8", max(len(text), 1))
        group.attrs.create(name, text, dtype=dtype)
    else:
        group.attrs[name] = value


class RowStore:
    """One dataset that rows are appended to, by HDF5's own calls.

    h5py's slice assignment costs twice the time of everything else together, and asking its
    datasets for their shapes and chunks half as much again.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._id = dataset.id
        self._row_shape = tuple(dataset.shape[1:])
        self._corner = (0,) * len(self._row_shape)
        self._chunk_rows = int(dataset.chunks[0])
        self._chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize

    def append(self, start: int, rows: Array) -> None:
        """Write `rows` from `start` on, growing the dataset."""
        stop = start + len(rows)
        if self._id.shape[0] < stop:
            self._id.set_extent((stop, *self._row_shape))
        where = self._id.get_space()
        where.select_hyperslab((start, *self._corner), rows.shape)
        rows = np.ascontiguousarray(rows)
        self._id.write(h5py.h5s.create_simple(rows.shape), where, rows)

    def new_bytes(self, start: int, count: int) -> int:
        """Bytes that the file may grow by when `count` rows are appended from `start` on."""
        chunks = -(-(start + count) // self._chunk_rows) - -(-start // self._chunk_rows)
        return chunks * (self._chunk_bytes + PAGE_BYTES)
