"""A dream as a vectorised environment of Stable-Baselines3."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import TrainingError
from dreamgym.train.actions import environment_actions, learner_action_space

Indices = int | Iterable[int] | None


class _SharedInfo(dict[str, Any]):
    """Empty info of all rows that are not done: one object for all of them, so it is read-only."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "this info is shared by all rows that are not done and is read-only; "
            "copy it first: info = dict(info)"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {}

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[()]]:
        return dict, ()


_EMPTY_INFO = _SharedInfo()


class SB3VecEnv(VecEnv):
    """A `DreamVectorEnv` as a Stable-Baselines3 `VecEnv`, with NumPy output.

    The infos of rows that are done have `terminal_observation` (the true last observation),
    `TimeLimit.truncated`, and `episode` with return `r`, length `l` and time `t` in seconds since
    the adapter was made, so neither `Monitor` nor `VecMonitor` is needed. All other rows share one
    empty read-only info: a dict for each of them would cost more than the dream's step.

    Truncation is never termination: a row that is both counts as terminated.
    """

    def __init__(self, env: DreamVectorEnv, *, reward_scale: float = 1.0) -> None:
        """Adapt `env`.

        Args:
            env: a dream in SameStep autoreset mode; its output may be torch or NumPy.
            reward_scale: factor on the rewards that the learner sees. The returns in `episode`
                stay in the real environment's units.

        Raises:
            TrainingError: `env` is not a vector environment or has another autoreset mode, or
                `reward_scale` is not a positive number.
        """
        if not isinstance(env, gym.vector.VectorEnv):
            raise TrainingError(
                f"expected a DreamVectorEnv, got {type(env).__name__}; make one with "
                'gym.make_vec("dreamgym/World-v0", world=..., num_envs=256, '
                'autoreset_mode="SameStep")'
            )
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            shown = mode.value if isinstance(mode, AutoresetMode) else mode
            raise TrainingError(
                f"the environment's autoreset mode is {shown}; Stable-Baselines3 needs the final "
                "and the first observation in the same step: make the environment with "
                'autoreset_mode="SameStep"'
            )
        if not reward_scale > 0 or not np.isfinite(reward_scale):
            raise TrainingError(f"reward_scale is {reward_scale}; expected a number above 0")
        self.env = env
        self.reward_scale = float(reward_scale)
        self._actions: NDArray[Any] | None = None
        self._creation_time = time.monotonic()
        self._next_options: dict[str, Any] | None = None
        super().__init__(
            env.num_envs,
            env.single_observation_space,
            learner_action_space(env.single_action_space),
        )

    def reset(self) -> Any:
        """Restart every dream, with the seed and options set since the last reset.

        Returns:
            Observations (N, ...).
        """
        observation, _ = self.env.reset(seed=self._seeds[0], options=self._next_options)
        self._reset_seeds()
        self._next_options = None
        return _numpy(observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions (N, ...) for `step_wait`."""
        converted = environment_actions(actions, self.env.single_action_space)
        self._actions = np.ascontiguousarray(converted)

    def step_wait(self) -> VecEnvStepReturn:
        """Step every dream.

        Returns:
            Observations (N, ...), float32 rewards (N,) times `reward_scale`, bool dones (N,) and
            N infos.

        Raises:
            TrainingError: `step_async` was not called before it.
        """
        if self._actions is None:
            raise TrainingError("step_wait() was called without step_async(actions) before it")
        actions, self._actions = self._actions, None
        observation, reward, terminated, truncated, info = self.env.step(actions)
        rewards = np.asarray(_numpy(reward), np.float32)
        terminations = np.asarray(_numpy(terminated), bool)
        dones = terminations | np.asarray(_numpy(truncated), bool)
        infos: list[dict[str, Any]] = [_EMPTY_INFO] * self.num_envs
        if dones.any():
            self._fill_infos(infos, np.flatnonzero(dones), terminations, info)
        return _numpy(observation), rewards * np.float32(self.reward_scale), dones, infos

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Set the options of the next `reset`.

        Args:
            options: options of `DreamVectorEnv.reset`, one dict for all rows; None for no options.

        Raises:
            TrainingError: `options` is a list, but all rows are one environment.
        """
        if isinstance(options, list):
            raise TrainingError(
                "set_options() got a list; all rows are one environment, so pass one dict"
            )
        self._next_options = dict(options) if options else None

    def close(self) -> None:
        """Close the dream."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return the environment's attribute, once for each of the rows."""
        return [getattr(self.env, attr_name)] * len(self._row_list(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the environment, which is one for all rows.

        Raises:
            TrainingError: `indices` leaves rows out.
        """
        self._require_all(indices, f"set {attr_name!r}")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the environment once and return its result for every row.

        Raises:
            TrainingError: `indices` leaves rows out.
        """
        self._require_all(indices, f"call {method_name!r}")
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result] * self.num_envs

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """Return whether rows are wrapped: only by `Monitor`, whose info the adapter provides."""
        return [issubclass(wrapper_class, Monitor)] * len(self._row_list(indices))

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return the environment's frames, or None for every row where it does not render."""
        frames = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def _fill_infos(
        self,
        infos: list[dict[str, Any]],
        rows: NDArray[np.int64],
        terminations: NDArray[np.bool_],
        info: dict[str, Any],
    ) -> None:
        final_observation = _numpy(info["final_obs"])
        returns, lengths = _numpy(info["episode"]["r"]), _numpy(info["episode"]["l"])
        seconds = round(time.monotonic() - self._creation_time, 6)
        for row in rows.tolist():
            infos[row] = {
                "terminal_observation": _copy_row(final_observation, row),
                "TimeLimit.truncated": not terminations[row],
                "episode": {"r": float(returns[row]), "l": int(lengths[row]), "t": seconds},
            }

    def _row_list(self, indices: Indices) -> list[int]:
        return list(self._get_indices(indices))

    def _require_all(self, indices: Indices, what: str) -> None:
        rows = self._row_list(indices)
        if sorted(rows) != list(range(self.num_envs)):
            raise TrainingError(
                f"cannot {what} on rows {rows} only: all {self.num_envs} rows are one environment; "
                "leave indices out"
            )


def _numpy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy()
    if isinstance(value, dict):
        return {key: _numpy(part) for key, part in value.items()}
    return value


def _copy_row(value: Any, row: int) -> Any:
    # a view would keep the whole batch alive as long as the info
    if isinstance(value, dict):
        return {key: _copy_row(part, row) for key, part in value.items()}
    return value[row].copy()
