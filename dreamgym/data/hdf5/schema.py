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
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from numpy.typing import NDArray

from dreamgym.data.layout import ACTION_KEY as ACTION_KEY
from dreamgym.data.layout import EPISODE_COLUMNS as EPISODE_COLUMNS
from dreamgym.data.layout import EPISODE_GROUP as EPISODE_GROUP
from dreamgym.data.layout import NO_SEED as NO_SEED
from dreamgym.data.layout import OBSERVATION_GROUP as OBSERVATION_GROUP
from dreamgym.data.layout import REWARD_DTYPE as REWARD_DTYPE
from dreamgym.data.layout import REWARD_KEY as REWARD_KEY
from dreamgym.data.layout import SINGLE_KEY as SINGLE_KEY
from dreamgym.data.layout import action_layout as action_layout
from dreamgym.data.layout import episode_crc as episode_crc
from dreamgym.data.layout import observation_path as observation_path
from dreamgym.data.metadata import DatasetMetadata as DatasetMetadata
from dreamgym.data.spaces import space_from_json, space_to_json
from dreamgym.errors import DatasetError

FORMAT = "dreamgym"


SCHEMA_VERSION = 1


# A chunk of small rows has this many; of images, the fewest that keep a random window cheap.
MAX_CHUNK_ROWS = 1024


MIN_CHUNK_ROWS = 16


CHUNK_BYTES = 64 << 10


def metadata_to_attributes(metadata: DatasetMetadata) -> dict[str, str | int]:
    """Return the HDF5 root attributes of a dataset's metadata."""
    attributes: dict[str, str | int] = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "observation_space": json.dumps(space_to_json(metadata.observation_space)),
        "action_space": json.dumps(space_to_json(metadata.action_space)),
        "env_spec": metadata.env_spec or "null",
        "env_id": metadata.env_id or "",
        "policy": metadata.policy,
        "seed": json.dumps(metadata.seed),
        "created": metadata.created,
        "versions": json.dumps(dict(metadata.versions)),
    }
    return attributes


def metadata_from_attributes(attributes: Mapping[str, Any]) -> DatasetMetadata:
    """Read a dataset's metadata from its HDF5 root attributes.

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
    return DatasetMetadata(
        observation_space=_space_attribute(attributes, "observation_space"),
        action_space=_space_attribute(attributes, "action_space"),
        env_spec=None if spec is None else _text_attribute(attributes, "env_spec"),
        env_id=_text_attribute(attributes, "env_id") or None,
        policy=_text_attribute(attributes, "policy"),
        seed=seed,
        created=_text_attribute(attributes, "created"),
        versions={str(name): str(value) for name, value in versions.items()},
    )


def chunk_rows(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """How many rows of this kind go into one chunk."""
    rows = CHUNK_BYTES // (math.prod(shape) * dtype.itemsize)
    return max(MIN_CHUNK_ROWS, min(MAX_CHUNK_ROWS, rows))


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
    for name, value in metadata_to_attributes(metadata).items():
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
