"""An episode as the rows that are stored, checked against the spaces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym.data.episodes import Episode, cast_rows, require_actions_inside, require_finite
from dreamgym.data.hdf5 import schema
from dreamgym.data.hdf5.schema import DatasetMetadata
from dreamgym.errors import DatasetError

Array = NDArray[Any]


def episode_columns(episode: Episode, metadata: DatasetMetadata) -> dict[str, Array]:
    """The rows of an episode as they are stored, by dataset name, checked against the spaces.

    Raises:
        DatasetError: With key and row, where something does not fit.
    """
    length = episode.length
    if length < 1:
        raise DatasetError("it has no actions; an episode has at least one")
    if episode.complete != (episode.terminated or episode.truncated):
        raise DatasetError(
            f"complete = {episode.complete}, but terminated = {episode.terminated} and "
            f"truncated = {episode.truncated}; an episode is complete when one of them holds"
        )
    columns = {}
    given = episode.observations
    boxes = metadata.observation_boxes()
    by_key = given if isinstance(given, dict) else {schema.SINGLE_KEY: given}
    if set(by_key) != set(boxes):
        raise DatasetError(f"it has observation keys {sorted(by_key)}; {sorted(boxes)} are wanted")
    for key, box in boxes.items():
        rows = _fitting(by_key[key], (length + 1, *box.shape), np.dtype(box.dtype), key)
        columns[schema.observation_path(key)] = rows
    shape, dtype = schema.action_layout(metadata.action_space)
    actions = _fitting(episode.actions, (length, *shape), dtype, "action")
    require_actions_inside(actions, metadata.action_space, "action")
    columns[schema.ACTION_KEY] = _with_zero_row(actions)
    rewards = _fitting(episode.rewards, (length,), schema.REWARD_DTYPE, "reward")
    columns[schema.REWARD_KEY] = _with_zero_row(rewards)
    return columns


def _fitting(values: Any, shape: tuple[int, ...], dtype: np.dtype[Any], key: str) -> Array:
    values = np.asarray(values)
    if values.shape != shape:
        raise DatasetError(f"its rows have shape {values.shape}; {shape} is wanted", key=key)
    require_finite(values, key)
    return cast_rows(values, dtype, key)


def _with_zero_row(values: Array) -> Array:
    return np.concatenate([values, np.zeros((1, *values.shape[1:]), dtype=values.dtype)])
