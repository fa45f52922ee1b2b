"""Helpers that the foreign formats share: reading rows, inferring spaces, building episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import h5py
import numpy as np
from gymnasium import spaces

from dreamgym.data.episodes import Episode, Observations
from dreamgym.data.formats.interface import Array, ForeignOptions, Probe, reading_errors
from dreamgym.data.formats.keys import Fields
from dreamgym.data.hdf5.guard import (
    get_dataset,
    get_group,
    hdf5_errors,
    is_group,
    require_plausible_read,
    require_stored,
)
from dreamgym.data.metadata import DatasetMetadata, spec_of_id
from dreamgym.errors import DatasetError

Rows = TypeVar("Rows")

_MOST_LEVELS = 8


def read_column(probe: Probe, name: str) -> Array:
    """Read one flat array of an HDF5 file or npz archive."""
    rows = read_columns(probe, name)
    if isinstance(rows, dict):
        raise DatasetError("it is a group; expected an array", path=probe.path, key=name)
    return rows


def read_columns(probe: Probe, name: str) -> Observations:
    """Read one flat array of an HDF5 file or npz archive, or a group of arrays as a dict."""
    if probe.hdf5 is not None:
        return read_observations(probe.hdf5, name, probe.path)
    if probe.npz is not None:
        return probe.npz.read_rows(name)
    raise DatasetError("expected an HDF5 or npz file", path=probe.path, key=name)


def read_rows(parent: h5py.Group, name: str, path: Path, part: slice = slice(None)) -> Array:
    """Read an HDF5 dataset of numbers, or a slice of its rows.

    Raises:
        DatasetError: it is missing, a scalar, or not every row is stored in the file.
    """
    dataset = get_dataset(parent, name, path)
    if dataset.ndim == 0:
        raise DatasetError("it is a single value; expected rows", path=path, key=dataset.name)
    require_stored(dataset, len(dataset), path)
    start, stop, _ = part.indices(len(dataset))
    row_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    require_plausible_read(dataset, max(0, stop - start) * row_bytes, path)
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


def array_names(file: h5py.File, path: Path) -> list[str]:
    """Return the paths of the arrays in an HDF5 file: `a`, `group/b`; links elsewhere are left out.

    A group that several links lead to is visited once, and groups in `_MOST_LEVELS` others are not,
    so that neither cycles nor chains of groups take long.
    """
    found: list[str] = []
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    seen: set[Any] = set()
    for prefix, group in waiting:
        with hdf5_errors(path, f"/{prefix}"):
            names = list(group)
        for name in names:
            try:
                info = h5py.h5g.get_objinfo(group.id, name.encode(), follow_link=False)
            except (RuntimeError, KeyError, ValueError):
                continue  # a damaged object
            if info.type == h5py.h5g.DATASET:
                found.append(f"{prefix}{name}")
            elif info.type == h5py.h5g.GROUP and info.objno not in seen:
                seen.add(info.objno)
                if prefix.count("/") < _MOST_LEVELS:
                    waiting.append((f"{prefix}{name}/", get_group(group, name, path)))
    return found


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


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is known of an episode before its observations are read.

    Attributes:
        actions: `(T, ...)`.
        rewards: `(T,)`, or `None` if the file has none.
        terminated: whether the episode terminated.
        last_is_lost: whether its last transition is left out, because the file does not hold the
            observation after it.
        repeats_last: whether the last observation is repeated in place of the one after it.
    """

    actions: Array
    rewards: Array | None = None
    terminated: bool = False
    last_is_lost: bool = False
    repeats_last: bool = False


@dataclass(frozen=True, kw_only=True)
class FlaggedOutline(Outline):
    """The outline of an episode that has arrays or a group of its own, with end flags.

    Attributes:
        found: keys of its arrays.
        truncated: whether the episode was truncated.
        meaning: how the end flags were read, for the convention.
    """

    found: Fields
    truncated: bool
    meaning: str

    def with_observations(self, observations: Observations, path: Path) -> Episode:
        """Return the episode, without its last transition and its end if that is lost.

        Args:
            observations: one row for each action that is kept, and one more unless the last one is
                repeated.
            path: path for error messages.
        """
        actions, rewards, ended = self.actions, self.rewards, (self.terminated, self.truncated)
        if self.last_is_lost:
            actions, ended = actions[:-1], (False, False)
            rewards = None if rewards is None else rewards[:-1]
        elif self.repeats_last:
            observations = append_row(observations, observations, path)
        return make_episode(observations, actions, rewards, ended, path)


def read_outlines(
    count: int, read: Callable[[int], FlaggedOutline], path: Path
) -> tuple[list[FlaggedOutline | DatasetError], list[FlaggedOutline]]:
    """Read the outlines of all episodes.

    Args:
        count: number of episodes.
        read: returns the outline of an episode, or raises what reading its rows raises.
        path: path for error messages.

    Returns:
        The outline of each episode, or the error; and the outlines alone.

    Raises:
        DatasetError: no episode can be read; it is the error of the first one.
    """
    parts: list[FlaggedOutline | DatasetError] = []
    for number in range(count):
        try:
            with reading_errors(path):
                parts.append(read(number))
        except DatasetError as error:
            parts.append(error)
    good = [part for part in parts if isinstance(part, FlaggedOutline)]
    if not good:
        raise next((p for p in parts if isinstance(p, DatasetError)), None) or DatasetError(
            "it has no episodes", path=path
        )
    return parts, good


def first_readable(read: Callable[[int], Rows], numbers: Iterable[int]) -> Rows:
    """Return what `read` gives for the first number for which it raises no `DatasetError`.

    Raises:
        DatasetError: it raises for all of them; it is the error of the first one.
    """
    failure: DatasetError | None = None
    for number in numbers:
        try:
            return read(number)
        except DatasetError as error:
            failure = failure or error
    raise failure or DatasetError("it has no episode that can be read")


def infer_action_space(outlines: Sequence[Outline], path: Path) -> tuple[gym.Space[Any], str]:
    """Return a Box for float actions, with bounds from the actions of all episodes, and a note.

    A channel that stays within [-1, 1] and covers more than half of it is taken to be normalised:
    its bounds are -1 and 1. The bounds of another channel are its lowest and highest value.

    Raises:
        DatasetError: the actions are integers: how many there are cannot be inferred.
    """
    first = outlines[0].actions
    if first.dtype.kind != "f":
        raise DatasetError(
            f"its actions are integers ({first.dtype}), and it does not say how many actions exist",
            path=path,
            remedy="pass the action space, for instance action_space=Discrete(4) (`--num-actions "
            "4`), or name its environment with env (`--env ENV`)",
        )
    dtype = _float_type(first.dtype)
    shape = first.shape[1:]
    low, high = np.full(shape, np.inf, dtype), np.full(shape, -np.inf, dtype)
    for outline in outlines:
        if outline.actions.shape[1:] != shape or not len(outline.actions):
            continue  # the check of the episode reports a wrong shape
        actions = outline.actions.astype(dtype)
        finite = np.isfinite(actions)
        low = np.minimum(low, np.where(finite, actions, np.inf).min(axis=0).astype(dtype))
        high = np.maximum(high, np.where(finite, actions, -np.inf).max(axis=0).astype(dtype))
    if not np.isfinite(low).all():
        return spaces.Box(-np.inf, np.inf, shape, dtype), "no action is finite"
    normalised = (low >= -1) & (high <= 1) & (high - low > 1)
    low, high = np.where(normalised, -1, low), np.where(normalised, 1, high)
    space = spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
    note = (
        f"the bounds of the actions are taken from the data ({_range(low)} to {_range(high)}), "
        "because the file does not state them; if you know them, name the environment (`--env "
        "ENV`) or pass action_space"
    )
    return space, note


def _range(bound: Array) -> str:
    values = [f"{value:.4g}" for value in np.unique(bound)[:8]]
    return values[0] if len(values) == 1 else f"[{', '.join(f'{v:.4g}' for v in bound.flat[:8])}]"


def find_losses(outlines: Sequence[Outline], allow_loss: bool) -> tuple[list[str], list[str]]:
    """Return notes and problems about the transitions that reading leaves out.

    Args:
        outlines: all episodes.
        allow_loss: whether losses that would be problems are only noted.
    """
    repeated = sum(outline.repeats_last for outline in outlines)
    if repeated:
        return [
            f"the observation after the last action of {repeated} episodes is not in the file; the "
            "last observation is repeated in its place (repeat_last)"
        ], []
    lost = [outline for outline in outlines if outline.last_is_lost and len(outline.actions)]
    if not lost:
        return [], []
    terminations = sum(outline.terminated for outline in lost)
    kept_terminations = sum(o.terminated for o in outlines if not o.last_is_lost)
    last = [float(np.ravel(o.rewards)[-1]) for o in lost if o.rewards is not None]
    kept = [
        np.ravel(o.rewards)[: -1 if o.last_is_lost else None]
        for o in outlines
        if o.rewards is not None
    ]
    note = (
        f"the last transition of {plural(len(lost), 'episode')} is lost, because the file does "
        f"not hold the observation after it; lost with it: {terminations} terminations"
    )
    note += f" and a reward of {sum(last):.6g} in all" if last else ""
    advice = (
        "add next observations to the file (next_observations, or T + 1 observations for T "
        "actions); or keep the last transition with its last observation repeated: "
        "repeat_last=True or --repeat-last; or accept it with allow_loss=True or --allow-loss"
    )
    problems = []
    if terminations and not kept_terminations:
        problems.append(
            f"all {terminations} terminations are lost with the last transitions, and dreams would "
            f"never end; {advice}"
        )
    values = np.unique(np.concatenate(kept)) if kept else np.empty(0)
    if len(values) <= 1 and any(reward not in values for reward in last):
        only = f" but {values[0]:.6g}" if len(values) else ""
        problems.append(f"all rewards{only} are lost with the last transitions; {advice}")
    return ([note, *problems], []) if allow_loss else ([note], problems)


def make_metadata(
    options: ForeignOptions,
    rows: Observations,
    actions: Array,
    path: Path,
    name: str,
    *,
    outlines: Sequence[Outline] | None = None,
) -> DatasetMetadata:
    """Return the metadata of a format that does not store spaces: given, else inferred.

    Args:
        options: what the user knows; its spaces take precedence.
        rows: observations of one episode, `(N, ...)`.
        actions: actions of one episode, `(N, ...)`.
        path: path for error messages.
        name: name of the format.
        outlines: all episodes, for the bounds of the actions and what reading leaves out; without
            them, the actions have no bounds.
    """
    notes, problems = find_losses(outlines or (), options.allow_loss)
    action_space = options.action_space
    if action_space is None:
        action_space, note = infer_action_space(outlines or (Outline(actions=actions),), path)
        if outlines is None:
            shape, dtype = actions.shape[1:], _float_type(actions.dtype)
            action_space = spaces.Box(-np.inf, np.inf, shape, dtype)
        else:
            notes.append(note)
    return DatasetMetadata(
        observation_space=given_observation_space(options, path) or infer_observation_space(rows),
        action_space=action_space,
        env_id=options.env_id,
        env_spec=None if options.env_id is None else spec_of_id(options.env_id),
        policy=f"unknown ({name})",
        notes=tuple(notes),
        problems=tuple(problems),
    )


def given_observation_space(options: ForeignOptions, path: Path) -> gym.Space[Any] | None:
    """Return the observation space that the user gave, with only the keys to read."""
    space = options.observation_space
    if space is None or options.keys is None or not isinstance(space, spaces.Dict):
        return space
    return spaces.Dict([(key, _space_at(space, key, path)) for key in options.keys])


def _space_at(space: spaces.Dict, key: str, path: Path) -> gym.Space[Any]:
    inner: Any = space
    for part in (key,) if key in space.spaces else key.split("/"):
        if not isinstance(inner, spaces.Dict) or part not in inner.spaces:
            raise DatasetError(
                f"the given observation space has no key {key!r}; it has {sorted(space.spaces)}",
                path=path,
            )
        inner = inner.spaces[part]
    return inner


def select_keys(rows: Observations, keys: Sequence[str] | None, path: Path) -> Observations:
    """Return the observations of the keys to read; all if `keys` is `None`.

    Raises:
        DatasetError: a key does not exist, or the observations are a single array.
    """
    if keys is None:
        return rows
    require_keys(keys, rows if isinstance(rows, dict) else None, path)
    return {key: rows[key] for key in keys} if isinstance(rows, dict) else rows


def require_keys(keys: Sequence[str] | None, known: Iterable[str] | None, path: Path) -> None:
    """Raise `DatasetError` unless all keys to read exist.

    Args:
        keys: the keys; `None` for all.
        known: the keys of the file; `None` if its observations are a single array.
        path: path for the error message.
    """
    if keys is None:
        return
    if known is None:
        raise DatasetError(
            f"its observations are a single array, so that the keys {list(keys)} cannot be chosen",
            path=path,
            remedy="leave out keys (`--key`)",
        )
    known = sorted(known)
    missing = [key for key in keys if key not in known]
    if missing or not keys:
        raise DatasetError(f"it has no observations {missing}; it has {known}", path=path)


def slice_rows(rows: Observations, part: slice) -> Observations:
    """Return some rows of the array, or of each array of a dict."""
    if isinstance(rows, dict):
        return {key: values[part] for key, values in rows.items()}
    return rows[part]


def append_row(
    rows: Observations, following: Observations, path: Path, key: str | None = None
) -> Observations:
    """Return observations with the last one of the next observations after them.

    Args:
        rows: observations, `(T, ...)`.
        following: next observations, `(T, ...)`.
        path: path for the error message.
        key: key of the next observations, for the error message.

    Raises:
        DatasetError: the next observations have other keys.
    """
    if isinstance(rows, dict) and isinstance(following, dict) and rows.keys() == following.keys():
        return {name: np.concatenate([rows[name], following[name][-1:]]) for name in rows}
    if isinstance(rows, dict) or isinstance(following, dict):
        raise DatasetError(
            f"it has the keys {_key_names(following)}; expected {_key_names(rows)}, as the "
            "observations have",
            path=path,
            key=key,
        )
    return np.concatenate([rows, following[-1:]])


def _key_names(rows: Observations) -> Any:
    return sorted(rows) if isinstance(rows, dict) else "none (a single array)"


def require_as_many(rows: Observations, count: int, path: Path, key: str) -> None:
    """Raise `DatasetError` unless there is one row for each of `count` actions."""
    parts = rows if isinstance(rows, dict) else {key: rows}
    wrong = {name: len(values) for name, values in parts.items() if len(values) != count}
    if wrong:
        raise DatasetError(
            f"it has {count} actions, but these numbers of observations: {wrong}; expected as many",
            path=path,
            key=key,
        )


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
        ended: whether the episode terminated, and whether it was truncated.
        path: path for the error message.

    Raises:
        DatasetError: there is not one reward per action.
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


def plural(count: int, noun: str) -> str:
    """Return a count and its noun, such as "1 episode" and "2 episodes"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
