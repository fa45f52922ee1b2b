"""Helpers that the foreign formats share: reading rows, inferring spaces, building episodes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from gymnasium import spaces

from dreamgym.data.episodes import Episode, Observations
from dreamgym.data.formats.interface import Array, ForeignOptions, Probe, Terminals
from dreamgym.data.hdf5.guard import (
    get_dataset,
    get_group,
    hdf5_errors,
    is_group,
    require_stored,
)
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.errors import DatasetError


def read_column(probe: Probe, name: str) -> Array:
    """Read one flat array of an HDF5 file or npz archive."""
    if probe.hdf5 is not None:
        return read_rows(probe.hdf5, name, probe.path)
    if probe.npz is not None:
        return probe.npz.read_rows(name)
    raise DatasetError("expected an HDF5 or npz file", path=probe.path, key=name)


def read_rows(parent: h5py.Group, name: str, path: Path, part: slice = slice(None)) -> Array:
    """Read an HDF5 dataset of numbers, or a slice of its rows.

    Raises:
        DatasetError: It is missing, a scalar, or not every row is stored in the file.
    """
    dataset = get_dataset(parent, name, path)
    if dataset.ndim == 0:
        raise DatasetError("it is a single value; expected rows", path=path, key=dataset.name)
    require_stored(dataset, len(dataset), path)
    with hdf5_errors(path, str(dataset.name)):
        values: Array = dataset[part]
    return values


def read_observations(parent: h5py.Group, name: str, path: Path) -> Observations:
    """Read an HDF5 dataset, or a group of datasets as a dict; nested keys are joined with `/`."""
    if not is_group(parent, name, path):
        return read_rows(parent, name, path)
    group, rows = get_group(parent, name, path), {}
    for key in group:
        inner = read_observations(group, key, path)
        if isinstance(inner, dict):
            rows.update({f"{key}/{nested}": values for nested, values in inner.items()})
        else:
            rows[key] = inner
    return rows


def sort_by_number(names: Iterable[str]) -> list[str]:
    """Sort names by the number at their end (`demo_2` before `demo_10`), others last."""

    def number(name: str) -> tuple[int, str]:
        digits = name.rsplit("_", 1)[-1]
        return (int(digits), name) if digits.isdigit() else (1 << 62, name)

    return sorted(names, key=number)


def infer_observation_space(rows: Observations) -> gym.Space[Any]:
    """Return the widest space for such rows; images (uint8) range from 0 to 255."""
    if isinstance(rows, dict):
        return spaces.Dict([(key, _infer_box(values)) for key, values in rows.items()])
    return _infer_box(rows)


def infer_action_space(actions: Array, path: Path) -> gym.Space[Any]:
    """Return an unbounded Box for float actions.

    Raises:
        DatasetError: The actions are integers: how many there are cannot be inferred.
    """
    if actions.dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, actions.shape[1:], _float_type(actions.dtype))
    raise DatasetError(
        f"its actions are integers ({actions.dtype}), and it does not say how many actions exist",
        path=path,
        remedy="pass the action space, for instance action_space=Discrete(4)",
    )


def make_metadata(
    options: ForeignOptions, rows: Observations, actions: Array, path: Path, name: str
) -> DatasetMetadata:
    """Return the metadata of a format that does not store spaces: given, else inferred.

    Args:
        options: What the user knows; its spaces take precedence.
        rows: Observations of one episode, `(N, ...)`.
        actions: Actions of one episode, `(N, ...)`.
        path: Path for error messages.
        name: Name of the format.
    """
    return DatasetMetadata(
        observation_space=options.observation_space or infer_observation_space(rows),
        action_space=options.action_space or infer_action_space(actions, path),
        env_id=options.env_id,
        policy=f"unknown ({name})",
    )


def require_terminals(options: ForeignOptions, path: Path, ambiguity: str) -> Terminals:
    """Return the meaning of ambiguous end flags that the user gave.

    Args:
        options: What the user knows.
        path: Path for the error message.
        ambiguity: What makes the flags ambiguous, for the error message.

    Raises:
        DatasetError: The user gave none; the message asks for it.
    """
    if options.terminals is None:
        raise DatasetError(
            f"{ambiguity}: the file does not say whether an end is a termination or only a "
            "boundary",
            path=path,
            remedy="pass terminals='termination' or terminals='boundary'",
        )
    return options.terminals


def make_episode(
    observations: Observations,
    actions: Array,
    rewards: Array | None,
    ended: tuple[bool, bool],
    path: Path,
) -> Episode:
    """Return an episode.

    Args:
        observations: `(T + 1, ...)`, or a dict of such arrays.
        actions: `(T, ...)`; half precision becomes float32.
        rewards: `(T,)`; zeros if `None`.
        ended: Whether the episode terminated, and whether it was truncated.
        path: Path for the error message.

    Raises:
        DatasetError: There is not one reward per action.
    """
    if actions.dtype.kind == "f" and actions.dtype.itemsize < 4:
        actions = actions.astype(np.float32)
    if rewards is None:
        rewards = np.zeros(len(actions), dtype=np.float32)
    if rewards.size != len(actions):
        raise DatasetError(
            f"it has rewards of shape {rewards.shape} for {len(actions)} actions; expected one "
            "reward per action",
            path=path,
            key="rewards",
        )
    terminated, truncated = ended
    return Episode(
        observations=observations,
        actions=actions,
        rewards=rewards.reshape(len(actions)),
        terminated=terminated,
        truncated=truncated,
        complete=terminated or truncated,
    )


def _infer_box(values: Array) -> spaces.Box:
    if values.dtype == np.uint8 and values.ndim >= 3:
        return spaces.Box(0, 255, values.shape[1:], np.uint8)
    if values.dtype.kind in "iu":
        info = np.iinfo(values.dtype)
        return spaces.Box(info.min, info.max, values.shape[1:], values.dtype.type)
    return spaces.Box(-np.inf, np.inf, values.shape[1:], _float_type(values.dtype))


def _float_type(dtype: np.dtype[Any]) -> Any:
    return np.float64 if dtype == np.float64 else np.float32
