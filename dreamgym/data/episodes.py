"""One episode of real experience: the value, the checks of its rows, and its builder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data import layout
from dreamgym.errors import DatasetError

Array = NDArray[Any]
Observations = Array | dict[str, Array]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_INITIAL_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One unbroken stretch of experience: `T` actions and `T + 1` observations.

    Attributes:
        observations: `(T + 1, *shape)` in the space's units and dtype, or a dict of such arrays by
            key.
        actions: `(T, ...)`; row `t` is the action that leaves observation `t`. Discrete: int64.
        rewards: `(T,)` float32; row `t` is the reward for action `t`.
        terminated: whether the last observation is terminal.
        truncated: whether something outside the task (a time limit) ended the episode.
        complete: whether the environment itself ended the episode. An episode that is neither
            terminated nor truncated was cut off (early reset, end of the recording) and is not
            complete.
        seed: seed of its reset; `None` if it had none.
        env_index: index of the environment that it came from, among several side by side.
    """

    observations: Observations
    actions: Array
    rewards: Array
    terminated: bool
    truncated: bool
    complete: bool
    seed: int | None = None
    env_index: int = 0

    @property
    def length(self) -> int:
        """`T`, the number of actions."""
        return len(self.actions)

    def __len__(self) -> int:
        return self.length


def cast_rows(values: Any, dtype: np.dtype[Any], key: str) -> Array:
    """Cast rows to the dtype that they are stored in, without changing their values.

    Floats may lose digits but not range; integers must keep their value; floats are never cast to
    integers.

    Args:
        values: `(N, ...)` rows.
        dtype: target dtype.
        key: name of the rows, for the error message.

    Raises:
        DatasetError: the dtype is of another kind, or a value does not fit.
    """
    values = np.asarray(values)
    if values.dtype == dtype:
        return values
    numeric = values.dtype.kind in "biuf"
    if not numeric or (values.dtype.kind == "f" and dtype.kind != "f"):
        raise DatasetError(
            f"its dtype is {values.dtype}; expected {dtype}",
            key=key,
            remedy="make the environment or the file return the dtype that its space declares",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    bad = (np.isinf(cast) & np.isfinite(values)) if dtype.kind == "f" else cast != values
    if bad.any():
        row = _first_bad_row(bad)
        value = values[row].flat[np.flatnonzero(bad[row])[0]]
        raise DatasetError(f"{value} does not fit in {dtype}", key=key, row=row)
    return cast


def require_finite(values: Array, key: str) -> None:
    """Raise `DatasetError` at the first row that holds NaN or an infinity."""
    if values.dtype.kind != "f":
        return
    finite = np.isfinite(values)
    if not finite.all():
        row = _first_bad_row(~finite)
        count = int((~finite).reshape(len(values), -1).any(axis=1).sum())
        kind = "NaN" if np.isnan(values[row]).any() else "an infinity"
        where = f" in channel {np.flatnonzero(~finite[row])[0]}" if values[row].size > 1 else ""
        more = f" ({count} such rows)" if count > 1 else ""
        raise DatasetError(
            f"it holds {kind}{where}{more}",
            key=key,
            row=row,
            remedy="repair the episode, or leave it out (on_bad='skip'; `dreamgym convert "
            "--skip-bad`)",
        )


def require_actions_inside(values: Array, space: gym.Space[Any], key: str) -> None:
    """Raise `DatasetError` if actions lie outside their space, with their number and the worst."""
    excess = action_excess(values, space)
    outside = excess > 0
    if outside.any():
        row = int(excess.argmax())
        raise DatasetError(
            f"{int(outside.sum())} of {len(values)} actions lie outside {space}, the worst "
            f"({values[row]}) by {excess[row]:.6g}",
            key=key,
            row=row,
            remedy="clip the actions where they are chosen; dreamgym never clips silently",
        )


def action_excess(values: Array, space: gym.Space[Any]) -> Array:
    """Return how far each action lies outside its space: `(N,)`, zero inside."""
    flat = values.reshape(len(values), -1)
    low, high = (np.asarray(bound).reshape(-1) for bound in _action_bounds(space))
    if flat.dtype.kind == "f":
        wide = flat.astype(np.float64)
        over, under = wide - high.astype(np.float64), low.astype(np.float64) - wide
        return np.asarray(np.maximum(np.maximum(over, under), 0.0).max(axis=1))
    outside = (flat < low) | (flat > high)
    if not outside.any():
        return np.zeros(len(flat))
    # float64 may round large integers, so that it measures the distance but does not decide.
    wide = flat.astype(np.float64)
    return np.asarray(
        np.where(outside, np.maximum(np.maximum(wide - high, low - wide), 1), 0).max(axis=1)
    )


def _action_bounds(space: gym.Space[Any]) -> tuple[Any, Any]:
    """Return the lowest and the highest action, both inclusive."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    raise DatasetError(f"{space} is not a supported action space")


def _first_bad_row(bad: Array) -> int:
    return int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])


def reward_to_float(reward: Any) -> float:
    """Return the reward of one step as a float.

    Args:
        reward: a number; or a NumPy array or torch tensor, on any device, of shape `()` or `(1,)`,
            as batched simulators give.

    Raises:
        DatasetError: it is something else; the message says what.
    """
    if isinstance(reward, float):
        return float(reward)
    if hasattr(reward, "detach"):  # a torch tensor; this package does not import torch
        reward = reward.detach().cpu()
    try:
        values = np.asarray(reward)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _bad_reward(f"it is a {type(reward).__name__} ({error})") from None
    if values.dtype.kind not in "biuf":
        raise _bad_reward(f"it is {reward!r:.80} of type {type(reward).__name__}")
    if values.shape not in ((), (1,)):
        raise _bad_reward(f"its shape is {values.shape}")
    return float(values.reshape(())[()])


def _bad_reward(found: str) -> DatasetError:
    return DatasetError(
        f"{found}; expected one number",
        key="reward",
        remedy="wrap the environment so that step returns one reward, for instance with "
        "gymnasium.wrappers.TransformReward(env, lambda reward: float(reward.sum()))",
    )


class EpisodeBuilder:
    """Builds episodes of one environment step by step, and checks every value.

    Args:
        observation_space: Box, or Dict of Box.
        action_space: Discrete, MultiDiscrete or Box.
        env_index: index of the environment, among several side by side.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        env_index: int = 0,
    ) -> None:
        self._is_dict = isinstance(observation_space, spaces.Dict)
        self._action_space = action_space
        self._env_index = env_index
        self._observations = {
            key: _RowBuffer(box.shape, np.dtype(box.dtype), key)
            for key, box in layout.observation_columns(observation_space).items()
        }
        shape, dtype = layout.action_layout(action_space)
        self._actions = _RowBuffer(shape, dtype, "action")
        self._action_shape, self._action_dtype = shape, dtype
        self._action_kinds = "biuf" if dtype.kind == "f" else "biu"
        self._rewards = _RowBuffer((), layout.REWARD_DTYPE, "reward")
        self._bounds = _action_bounds(action_space)
        self._length = -1  # no episode is open
        self._seed: int | None = None

    @property
    def length(self) -> int:
        """Number of actions in the open episode; -1 if none is open."""
        return self._length

    def begin(self, observation: Any, seed: int | None = None) -> None:
        """Open an episode with its first observation; an open episode is discarded."""
        self._length, self._seed = -1, seed
        self._put_observation(0, observation)
        self._length = 0

    def check_action(self, action: Any) -> Array:
        """Return the action as it will be stored; call it before the environment steps.

        Raises:
            DatasetError: no episode is open, or the action does not fit the space.
        """
        if self._length < 0:
            raise DatasetError("step was called without a reset before it; call reset first")
        row = np.asarray(action)
        if row.shape != self._action_shape and row.size == 1 and not self._action_shape:
            row = row.reshape(())
        low, high = self._bounds
        fits = row.shape == self._action_shape and row.dtype.kind in self._action_kinds
        if not fits or not np.all((row >= low) & (row <= high)):
            self._refuse_action(row)
        return row

    def append(self, action: Array, observation: Any, reward: Any) -> None:
        """Add one transition; the episode is unchanged if it raises.

        Args:
            action: action that `check_action` returned.
            observation: observation after the action.
            reward: reward for the action.

        Raises:
            DatasetError: a value does not fit the spaces, or is not finite.
        """
        index = self._length
        try:
            value = reward_to_float(reward)
        except DatasetError as error:
            raise _with_row(error, index) from None
        if not math.isfinite(value) or abs(value) > _FLOAT32_MAX:
            raise DatasetError(f"it is {value}; expected a finite float32", key="reward", row=index)
        self._put_observation(index + 1, observation)
        self._actions.put(index, action)
        self._rewards.put(index, np.float32(value))
        self._length = index + 1

    def finish(self, *, terminated: bool = False, truncated: bool = False) -> Episode | None:
        """Close and return the episode; `None` if none is open, or it has no action yet."""
        length, self._length = self._length, -1
        if length < 1:
            return None
        observations = {key: buffer.copy(length + 1) for key, buffer in self._observations.items()}
        return Episode(
            observations=observations if self._is_dict else observations[layout.SINGLE_KEY],
            actions=self._actions.copy(length),
            rewards=self._rewards.copy(length),
            terminated=terminated,
            truncated=truncated,
            complete=terminated or truncated,
            seed=self._seed,
            env_index=self._env_index,
        )

    def _put_observation(self, index: int, observation: Any) -> None:
        if not self._is_dict:
            self._observations[layout.SINGLE_KEY].put(index, observation)
            return
        if not isinstance(observation, dict) or observation.keys() != self._observations.keys():
            keys = sorted(observation) if isinstance(observation, dict) else type(observation)
            raise DatasetError(
                f"the observation has the keys {keys}; the space has {sorted(self._observations)}",
                row=index,
            )
        for key, buffer in self._observations.items():
            buffer.put(index, observation[key])

    def _refuse_action(self, row: Array) -> None:
        if row.shape != self._action_shape:
            raise DatasetError(
                f"its shape is {row.shape}; the space {self._action_space} has "
                f"{self._action_shape}",
                key="action",
                row=self._length,
            )
        try:
            require_finite(row[None], "action")
            row = cast_rows(row[None], self._action_dtype, "action")[0]
            require_actions_inside(row[None], self._action_space, "action")
        except DatasetError as error:
            raise _with_row(error, self._length) from None


class _RowBuffer:
    """A growing array of rows that are copied in and checked one by one.

    Args:
        shape: shape of one row.
        dtype: dtype of the rows.
        key: name of the rows, for error messages.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], key: str) -> None:
        self._shape, self._dtype, self._key = shape, dtype, key
        self._is_float = dtype.kind == "f"
        self._rows = np.empty((_INITIAL_ROWS, *shape), dtype=dtype)

    def put(self, index: int, value: Any) -> None:
        """Copy `value` into row `index`, which is at most one beyond the rows so far.

        Raises:
            DatasetError: the value has another shape, cannot be cast, or is not finite.
        """
        value = np.asarray(value)
        if value.shape != self._shape:
            raise DatasetError(
                f"its shape is {value.shape}; the space has {self._shape}",
                key=self._key,
                row=index,
            )
        if value.dtype != self._dtype or (self._is_float and not np.isfinite(value).all()):
            value = self._cast(value, index)
        if index == len(self._rows):
            grown = np.empty((2 * index, *self._shape), dtype=self._dtype)
            grown[:index] = self._rows
            self._rows = grown
        self._rows[index] = value

    def copy(self, count: int) -> Array:
        """Return a copy of the first `count` rows."""
        return self._rows[:count].copy()

    def _cast(self, value: Array, index: int) -> Array:
        try:
            require_finite(value[None], self._key)
            return cast_rows(value[None], self._dtype, self._key)[0]
        except DatasetError as error:
            raise _with_row(error, index) from None


def _with_row(error: DatasetError, row: int) -> DatasetError:
    """Return the error of a single row with its place in the episode."""
    return DatasetError(error.problem, key=error.key, row=row, remedy=error.remedy)
