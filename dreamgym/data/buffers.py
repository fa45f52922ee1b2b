"""Conversion of a replay buffer of Stable-Baselines3, as an object in memory, to a native dataset.

Its file is a Python pickle, which could execute anything and is never loaded here: load it with
Stable-Baselines3, if you trust it, and convert the object. The buffer is recognised by its arrays,
so that nothing is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym._files import local_path
from dreamgym.data.conversion import Conversion
from dreamgym.data.episodes import Observations
from dreamgym.data.formats import ForeignOptions
from dreamgym.data.formats.common import (
    FlaggedOutline,
    append_row,
    find_losses,
    given_observation_space,
    slice_rows,
)
from dreamgym.data.formats.keys import Fields, require_terminals
from dreamgym.data.formats.log_rows import split_by_ends
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.data.metadata import DatasetMetadata, spec_of_id
from dreamgym.errors import DatasetError

Array = NDArray[Any]

_ARRAYS = ("observations", "actions", "rewards", "dones", "timeouts", "pos", "full", "n_envs")
_FORMAT = "Stable-Baselines3 replay buffer"


def convert_buffer(
    buffer: Any,
    out: str | os.PathLike[str],
    *,
    options: ForeignOptions | None = None,
    scaled_actions: bool = True,
) -> Conversion:
    """Write a replay buffer of Stable-Baselines3 as a native dataset.

    Off-policy algorithms store the actions of a Box space scaled to [-1, 1]; they are scaled back
    to the space. Time limits are truncations, other ends terminations. Where two rows do not follow
    each other, an episode is cut off.

    Args:
        buffer: a `ReplayBuffer` or `DictReplayBuffer`, for instance `model.replay_buffer`.
        out: the dataset to create.
        options: what the buffer does not say: `env_id`; `terminals`, if it does not tell time
            limits apart (`handle_timeout_termination=False`); `repeat_last` or `allow_loss`, if it
            does not hold the last observations (`optimize_memory_usage=True`); spaces.
        scaled_actions: whether the actions of a Box space are scaled to [-1, 1]. Pass False for a
            buffer that your own code filled with actions of the environment.

    Raises:
        TypeError: it is not such a buffer.
        DatasetError: it is empty, what an end means is not known, or `out` exists.
    """
    missing = [name for name in _ARRAYS if not hasattr(buffer, name)]
    if missing:
        raise TypeError(
            f"expected a replay buffer of Stable-Baselines3, got {type(buffer).__name__} without "
            f"{missing}; a buffer of d3rlpy is saved with buffer.dump(file) and converted with "
            "dreamgym.data.convert(path, out)"
        )
    options, out = options or ForeignOptions(), local_path(out)
    parts = list(_parts(buffer, options, out, scaled_actions))
    if not parts:
        raise DatasetError("the buffer is empty; convert it after the training has taken steps")
    outlines = [outline for outline, _ in parts]
    notes, problems = find_losses(outlines, options.allow_loss)
    metadata = DatasetMetadata(
        observation_space=given_observation_space(options, out) or buffer.observation_space,
        action_space=options.action_space or buffer.action_space,
        env_id=options.env_id,
        env_spec=None if options.env_id is None else spec_of_id(options.env_id),
        policy=f"unknown ({_FORMAT})",
        notes=tuple(notes),
        problems=tuple(problems),
    )
    with DatasetWriter(out, metadata) as writer:
        for outline, rows in parts:
            episode = outline.with_observations(rows, out)
            if episode.length:
                writer.add(episode)
    meaning = outlines[0].meaning
    return Conversion(
        path=out,
        format=_FORMAT,
        convention=f"{_FORMAT}: {int(buffer.n_envs)} environments, {meaning}",
        episodes=writer.num_episodes,
        steps=writer.num_steps,
        skipped=[],
        notes=[*notes, *problems],
    )


def _parts(
    buffer: Any, options: ForeignOptions, path: Path, scaled: bool
) -> Iterator[tuple[FlaggedOutline, Observations]]:
    """Return outline and observations of each episode, environment by environment."""
    size, pos = len(buffer.rewards), int(buffer.pos)
    order = np.arange(pos)
    if not pos and not buffer.full:
        return
    if buffer.full:
        order = (np.arange(size) + pos) % size
    dense = not hasattr(buffer, "next_observations")  # optimize_memory_usage
    if dense and buffer.full:
        order = order[1:]  # whose observation was overwritten by the newest one
    marked = bool(getattr(buffer, "handle_timeout_termination", False))
    meaning = "dones are terminations where timeouts are not set"
    terminations = True
    if not marked and (np.asarray(buffer.dones)[order] != 0).any():
        ambiguity = "the buffer does not tell time limits apart (handle_timeout_termination=False)"
        terminals = require_terminals(options, path, ambiguity)
        terminations, meaning = terminals == "termination", f"dones are {terminals} (by option)"
    for env in range(int(buffer.n_envs)):
        rows = _take(buffer.observations, order, env)
        following = None if dense else _take(buffer.next_observations, order, env)
        dones, timeouts = (np.asarray(a)[order, env] != 0 for a in (buffer.dones, buffer.timeouts))
        actions = _actions(np.asarray(buffer.actions)[order, env], buffer.action_space, scaled)
        rewards = np.asarray(buffer.rewards)[order, env]
        for start, stop in _bounds(dones, rows, following):
            last, part = stop - 1, slice(start, stop)
            ended = bool(dones[last])
            timed_out = ended and (bool(timeouts[last]) or not terminations)
            outline = FlaggedOutline(
                actions=actions[part],
                rewards=rewards[part],
                terminated=ended and not timed_out,
                truncated=timed_out,
                last_is_lost=dense and not options.repeat_last,
                repeats_last=dense and options.repeat_last,
                found=Fields(),
                meaning=meaning,
            )
            observed = slice_rows(rows, part)
            if following is not None:
                observed = append_row(observed, slice_rows(following, part), path)
            yield outline, observed


def _take(values: Any, order: Array, env: int) -> Observations:
    """Return the rows of one environment, oldest first."""
    if isinstance(values, dict):
        return {key: np.asarray(part)[order, env] for key, part in values.items()}
    return np.asarray(values)[order, env]


def _actions(rows: Array, space: Any, scaled: bool) -> Array:
    """Return the actions that the environment took."""
    if not isinstance(space, spaces.Box):
        return rows.reshape(len(rows), *space.shape).astype(np.int64)
    actions = rows.reshape(len(rows), *space.shape)
    if scaled:
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        actions = low + 0.5 * (actions.astype(np.float64) + 1.0) * (high - low)
    clipped = np.clip(actions, space.low, space.high)  # what rounding put outside
    return (clipped if np.allclose(clipped, actions) else actions).astype(space.dtype)


def _bounds(
    dones: Array, rows: Observations, following: Observations | None
) -> Iterator[tuple[int, int]]:
    """Return the first row of each episode, and the row after its last one."""
    ends = dones.copy()
    if following is not None and len(ends) > 1:
        ends[:-1] |= ~_continues(rows, following)
    starts, counts = split_by_ends(ends)
    yield from zip(starts.tolist(), (starts + counts).tolist(), strict=True)


def _continues(rows: Observations, following: Observations) -> Array:
    """Return whether each next observation is the observation of the next row, `(N - 1,)`."""
    if isinstance(rows, dict) and isinstance(following, dict):
        return np.asarray(
            np.logical_and.reduce([_continues(rows[key], following[key]) for key in rows])
        )
    if isinstance(rows, dict) or isinstance(following, dict):
        return np.zeros(0, bool)
    same = (following[:-1] == rows[1:]).reshape(len(rows) - 1, -1)
    return np.asarray(same.all(axis=1))
