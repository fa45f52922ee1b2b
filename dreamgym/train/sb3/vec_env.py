"""A dream as a vectorised environment of Stable-Baselines3."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn

from dreamgym.errors import TrainingError, WorldError
from dreamgym.train.actions import environment_actions, learner_action_space
from dreamgym.train.dreams import dream_for

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


def _num_masks(space: gym.Space[Any]) -> int:
    """Return the entries of one action mask, as in sb3-contrib; 0 for a Box."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return 2 * int(np.prod(space.shape)) if isinstance(space, gym.spaces.MultiBinary) else 0


class SB3VecEnv(VecEnv):
    """A `DreamVectorEnv` as a Stable-Baselines3 `VecEnv`, with NumPy output.

    The infos of rows that are done have `terminal_observation` (the true last observation),
    `TimeLimit.truncated`, and `episode` with return `r`, length `l` and time `t` in seconds since
    the adapter was made, so neither `Monitor` nor `VecMonitor` is needed. All other rows share one
    empty read-only info: a dict for each of them would cost more than the dream's step.

    Truncation is never termination: a row that is both counts as terminated.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        reward_scale: float = 1.0,
        compute_reward: Callable[[Any, Any, Any], Any] | None = None,
        action_masks: Callable[[Any], NDArray[np.bool_]] | None = None,
    ) -> None:
        """Adapt `env`.

        Args:
            env: a dream; one in another autoreset mode than SameStep is recreated, since
                Stable-Baselines3 needs the final and the first observation in the same step.
            reward_scale: factor on the rewards that the learner sees. The returns in `episode`
                stay in the real environment's units.
            compute_reward: function of achieved goals (B, ...), desired goals (B, ...) and infos
                that returns rewards (B,), which hindsight experience replay calls; by default that
                of the world's real environment, where it can be made.
            action_masks: function of observations (N, ...) that returns masks (N, actions), true
                where an action is allowed, which MaskablePPO calls; by default all are allowed, and
                a warning says so.

        Raises:
            TrainingError: `env` is not a vector environment, or wraps one in another autoreset
                mode, or `reward_scale` is not a positive number.
        """
        env = dream_for(env, library="Stable-Baselines3", autoreset_mode="SameStep")
        if not reward_scale > 0 or not np.isfinite(reward_scale):
            raise TrainingError(f"reward_scale is {reward_scale}; expected a number above 0")
        self.env: Any = env
        self.reward_scale = float(reward_scale)
        self._actions: NDArray[Any] | None = None
        self._creation_time = time.monotonic()
        self._next_options: dict[str, Any] | None = None
        self._compute_reward, self._action_masks = compute_reward, action_masks
        self._warned_of_masks = False
        self._observation: Any = None
        self._returns, self._lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
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
        self._returns[:], self._lengths[:] = 0, 0
        self._observation = _numpy(observation)
        return self._observation

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
        self._observation = _numpy(observation)
        rewards = np.asarray(_numpy(reward), np.float32)
        self._returns += rewards
        self._lengths += 1
        terminations = np.asarray(_numpy(terminated), bool)
        dones = terminations | np.asarray(_numpy(truncated), bool)
        infos: list[dict[str, Any]] = [_EMPTY_INFO] * self.num_envs
        if dones.any():
            self._fill_infos(infos, np.flatnonzero(dones), terminations, info)
        return self._observation, rewards * np.float32(self.reward_scale), dones, infos

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
        """Return the environment's attribute, once for each of the rows.

        Every environment of discrete actions has `action_masks`, see `env_method`.
        """
        if attr_name == "action_masks" and _num_masks(self.action_space):
            return [self._masks] * len(self._row_list(indices))
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

        `compute_reward` and `action_masks`, which a dream does not have, are the functions that the
        adapter was given, or what stands for them.

        Raises:
            TrainingError: `indices` leaves rows out, or nothing can compute the reward of a goal.
        """
        if method_name == "compute_reward":
            rewards = self._reward_function()(*method_args, **method_kwargs)
            scaled = np.asarray(_numpy(rewards), np.float32) * np.float32(self.reward_scale)
            return [scaled] * len(self._row_list(indices))
        if method_name == "action_masks" and _num_masks(self.action_space):
            masks = self._masks()
            return [masks[row] for row in self._row_list(indices)]
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
        seconds = round(time.monotonic() - self._creation_time, 6)
        for row in rows.tolist():
            infos[row] = {
                "terminal_observation": _copy_row(final_observation, row),
                "TimeLimit.truncated": not terminations[row],
                "episode": {
                    "r": float(self._returns[row]),
                    "l": int(self._lengths[row]),
                    "t": seconds,
                },
            }
        self._returns[rows], self._lengths[rows] = 0, 0

    def _masks(self) -> NDArray[np.bool_]:
        """Return the masks (N, actions) of the actions that are allowed now."""
        shape = (self.num_envs, _num_masks(self.action_space))
        if self._action_masks is None:
            if not self._warned_of_masks:
                self._warned_of_masks = True
                warnings.warn(
                    "a dream has no action masks, so all actions are allowed in it; if the real "
                    "environment forbids some, pass SB3VecEnv(env, action_masks=function), a "
                    "function of observations (N, ...) that returns masks (N, actions)",
                    UserWarning,
                    stacklevel=3,
                )
            return np.ones(shape, bool)
        masks = np.asarray(_numpy(self._action_masks(self._observation)), bool)
        if masks.shape != shape:
            raise TrainingError(
                f"action_masks returned masks of shape {masks.shape}; expected {shape}, one row "
                "for each dream and one entry for each action"
            )
        return masks

    def _reward_function(self) -> Callable[..., Any]:
        """Return the function that computes the reward of a goal."""
        if self._compute_reward is None:
            self._compute_reward = getattr(self.env, "compute_reward", None)
        if self._compute_reward is None:
            try:
                self._compute_reward = self.env.world.real_env().get_wrapper_attr("compute_reward")
            except (AttributeError, WorldError, gym.error.Error) as error:
                raise TrainingError(
                    "hindsight experience replay needs compute_reward, which a dream does not have "
                    "and which cannot be taken from the world's real environment "
                    f"({str(error).rstrip('.')}); pass SB3VecEnv(env, compute_reward=function), "
                    "e.g. real_env.unwrapped.compute_reward"
                ) from None
        return self._compute_reward

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
