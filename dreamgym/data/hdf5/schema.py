"""How metadata and episodes are stored in a native file, version 1.

The columns are those of `data.layout`; the root attributes are `format`, `schema_version`,
`observation_space`, `action_space`, `env_spec`, `env_id`, `policy`, `seed`, `created` and
`versions`; and, where a conversion left any, `notes` and `problems`. `docs/data.md` describes the
file field by field.
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

from dreamgym.data import layout
from dreamgym.data.episodes import Episode, cast_rows, require_actions_inside, require_finite
from dreamgym.data.metadata import DatasetMetadata, check_env_spec
from dreamgym.data.spaces import MAX_ROW_BYTES, space_from_json, space_to_json
from dreamgym.errors import DatasetError

Array = NDArray[Any]

FORMAT = "dreamgym"

# Attributes that are there only if they are not empty.
_TEXTS = ("notes", "problems")
SCHEMA_VERSION = 1

# Small rows: as many per chunk as fit, up to a limit. Images: the fewest rows per chunk that keep
# reading a random window cheap.
_MAX_CHUNK_ROWS = 1024
_MIN_CHUNK_ROWS = 16
_CHUNK_BYTES = 64 << 10


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
    if metadata.env_name is not None:
        attributes["env_name"] = metadata.env_name
    for name in _TEXTS:
        if getattr(metadata, name):
            attributes[name] = json.dumps(getattr(metadata, name))
    return attributes


def metadata_from_attributes(
    attributes: Mapping[str, Any], max_row_bytes: int = MAX_ROW_BYTES
) -> DatasetMetadata:
    """Return a dataset's metadata from its HDF5 root attributes.

    Args:
        attributes: the attributes by name.
        max_row_bytes: most bytes that an observation or an action may have, by what is stored.

    Raises:
        DatasetError: an attribute is missing or malformed; `key` names it.
        UnsupportedSpaceError: a space has an unsupported type.
    """
    spec = _json_attribute(attributes, "env_spec")
    seed = _json_attribute(attributes, "seed")
    versions = _json_attribute(attributes, "versions")
    if spec is not None:
        check_env_spec(spec, "@env_spec")
    if not isinstance(versions, dict):
        raise DatasetError("it is not a JSON object", key="@versions")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise DatasetError(f"it is {seed!r}; expected an integer or null", key="@seed")
    return DatasetMetadata(
        observation_space=_space_attribute(attributes, "observation_space", max_row_bytes),
        action_space=_space_attribute(attributes, "action_space", max_row_bytes),
        env_spec=None if spec is None else _text_attribute(attributes, "env_spec"),
        env_id=_text_attribute(attributes, "env_id") or None,
        env_name=_text_attribute(attributes, "env_name") if "env_name" in attributes else None,
        policy=_text_attribute(attributes, "policy"),
        seed=seed,
        created=_text_attribute(attributes, "created"),
        versions={str(name): str(value) for name, value in versions.items()},
        **{name: _texts_attribute(attributes, name) for name in _TEXTS},
    )


def set_attribute(group: h5py.Group, name: str, value: str | int) -> None:
    """Set an attribute; text is stored with fixed length.

    Text of fixed length is in the object header, under its checksum. Text of variable length would
    be in HDF5's global heap, which has no checksum, and where a few zeroed bytes make HDF5 loop
    forever.
    """
    if isinstance(value, str):
        text = value.encode()
        dtype = h5py.string_dtype("utf-8", max(len(text), 1))
        group.attrs.create(name, text, dtype=dtype)
    else:
        group.attrs[name] = value


def row_layout(metadata: DatasetMetadata) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and dtype of one row of every dataset in a native file, by name."""
    rows: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        layout.observation_path(key): (box.shape, np.dtype(box.dtype).newbyteorder("<"))
        for key, box in metadata.observation_columns().items()
    }
    rows[layout.ACTION_KEY] = layout.action_layout(metadata.action_space)
    rows[layout.REWARD_KEY] = (), layout.REWARD_DTYPE
    for column, dtype in layout.EPISODE_COLUMNS.items():
        rows[f"{layout.EPISODE_GROUP}/{column}"] = (), dtype
    return rows


def chunk_rows(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the number of rows in one chunk, given shape and dtype of a row."""
    rows = _CHUNK_BYTES // (math.prod(shape) * dtype.itemsize)
    return max(_MIN_CHUNK_ROWS, min(_MAX_CHUNK_ROWS, rows))


def episode_columns(episode: Episode, metadata: DatasetMetadata) -> dict[str, Array]:
    """Check an episode against the spaces, and return its `T + 1` stored rows by dataset name.

    Raises:
        DatasetError: flags, keys, shapes, dtypes or values do not fit; it has key and row.
    """
    length = episode.length
    if length < 1:
        raise DatasetError("it has no actions; an episode has at least one")
    if episode.complete != (episode.terminated or episode.truncated):
        raise DatasetError(
            f"complete = {episode.complete}, but terminated = {episode.terminated} and "
            f"truncated = {episode.truncated}; an episode is complete if one of them is true"
        )
    columns = {}
    boxes = metadata.observation_columns()
    observations = (
        episode.observations
        if isinstance(episode.observations, dict)
        else {layout.SINGLE_KEY: episode.observations}
    )
    if set(observations) != set(boxes):
        raise DatasetError(
            f"it has observation keys {sorted(observations)}; expected {sorted(boxes)}"
        )
    for key, box in boxes.items():
        rows = _check_rows(observations[key], (length + 1, *box.shape), np.dtype(box.dtype), key)
        columns[layout.observation_path(key)] = rows
    shape, dtype = layout.action_layout(metadata.action_space)
    actions = _check_rows(episode.actions, (length, *shape), dtype, "action")
    require_actions_inside(actions, metadata.action_space, "action")
    columns[layout.ACTION_KEY] = _append_zero_row(actions)
    rewards = _check_rows(episode.rewards, (length,), layout.REWARD_DTYPE, "reward")
    columns[layout.REWARD_KEY] = _append_zero_row(rewards)
    return columns


def _check_rows(values: Any, shape: tuple[int, ...], dtype: np.dtype[Any], key: str) -> Array:
    values = np.asarray(values)
    if values.shape != shape:
        raise DatasetError(f"its rows have shape {values.shape}; expected {shape}", key=key)
    require_finite(values, key)
    return cast_rows(values, dtype, key)


def _append_zero_row(values: Array) -> Array:
    return np.concatenate([values, np.zeros((1, *values.shape[1:]), dtype=values.dtype)])


def _text_attribute(attributes: Mapping[str, Any], name: str) -> str:
    if name not in attributes:
        raise DatasetError("the attribute is missing, or not text of fixed length", key=f"@{name}")
    value = attributes[name]
    if not isinstance(value, bytes):
        raise DatasetError(
            f"the attribute is {type(value).__name__}; expected text", key=f"@{name}"
        )
    return value.decode("utf-8", errors="replace")


def _json_attribute(attributes: Mapping[str, Any], name: str) -> Any:
    text = _text_attribute(attributes, name)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"the attribute is not JSON ({error})", key=f"@{name}") from error


def _texts_attribute(attributes: Mapping[str, Any], name: str) -> tuple[str, ...]:
    texts = _json_attribute(attributes, name) if name in attributes else []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DatasetError("it is not a JSON list of texts", key=f"@{name}")
    return tuple(texts)


def _space_attribute(attributes: Mapping[str, Any], name: str, max_bytes: int) -> gym.Space[Any]:
    try:
        return space_from_json(_json_attribute(attributes, name), max_bytes)
    except DatasetError as error:
        raise DatasetError(error.problem, key=error.key or f"@{name}") from error
