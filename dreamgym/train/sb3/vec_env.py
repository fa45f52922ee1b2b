"""A dream as Stable-Baselines3 wants its environments."""

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

Indices = int | Iterable[int] | None


class _NothingToReport(dict[str, Any]):
    """The info of every row that is not done: one object for all of them, so it refuses writes."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "this info is shared by all rows that are not done and cannot be written to; "
            "copy it first: info = dict(info)"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {}

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[()]]:
        return dict, ()


_NOTHING = _NothingToReport()


class SB3VecEnv(VecEnv):
    """A `DreamVectorEnv` as a Stable-Baselines3 `VecEnv`: NumPy out, one info a row.

    Rows that are done carry `terminal_observation` (the true last observation),
    `TimeLimit.truncated` and `episode` with return `r`, length `l` and time `t` since the
    adapter was made; so neither `Monitor` nor `VecMonitor` is needed. The other rows share one
    empty info that refuses writes: building a dict for each costs more than a dream's step.

    Truncation is never termination: a row that is both is terminated.
    """

    def __init__(self, env: DreamVectorEnv, *, reward_scale: float = 1.0) -> None:
        """Adapt `env`.

        Args:
            env: in SameStep mode; its output may be torch or NumPy.
            reward_scale: rewards are multiplied by it on their way to the learner. `episode`
                stays in the real environment's units.

        Raises:
            TrainingError: another autoreset mode, something that is not a vector environment, or
                a scale that is not a positive number.
        """
        if not isinstance(env, gym.vector.VectorEnv):
            raise TrainingError(
                f"env is a {type(env).__name__}; wanted a DreamVectorEnv, e.g. "
                'gym.make_vec("dreamgym/World-v0", world=..., num_envs=256, '
                'autoreset_mode="SameStep")'
            )
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            given = mode.value if isinstance(mode, AutoresetMode) else mode
            raise TrainingError(
                f"the environment's autoreset mode is {given}; Stable-Baselines3 needs final and "
                'first observation in the same step: make it with autoreset_mode="SameStep"'
            )
        if not reward_scale > 0 or not np.isfinite(reward_scale):
            raise TrainingError(f"reward_scale is {reward_scale}; wanted a number above 0")
        self.env = env
        self.reward_scale = float(reward_scale)
        self._actions: NDArray[Any] | None = None
        self._made = time.monotonic()
        self._waiting_options: dict[str, Any] | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Begin every dream anew, with the seed and options that wait since the last call.

        Returns:
            Observations (N, ...).
        """
        observation, _ = self.env.reset(seed=self._seeds[0], options=self._waiting_options)
        self._reset_seeds()
        self._waiting_options = None
        return _numpy(observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions (N, ...) for `step_wait`."""
        self._actions = np.ascontiguousarray(actions, self.action_space.dtype)

    def step_wait(self) -> VecEnvStepReturn:
        """Step every dream.

        Returns:
            Observations (N, ...), float32 rewards (N,) times `reward_scale`, bool dones (N,) and
            N infos.

        Raises:
            TrainingError: `step_async` was not called before.
        """
        if self._actions is None:
            raise TrainingError("step_wait() without step_async(actions) before it")
        actions, self._actions = self._actions, None
        observation, reward, terminated, truncated, info = self.env.step(actions)
        rewards = np.asarray(_numpy(reward), np.float32)
        terminations = np.asarray(_numpy(terminated), bool)
        dones = terminations | np.asarray(_numpy(truncated), bool)
        infos: list[dict[str, Any]] = [_NOTHING] * self.num_envs
        if dones.any():
            self._fill(infos, np.flatnonzero(dones), terminations, info)
        return _numpy(observation), rewards * np.float32(self.reward_scale), dones, infos

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Keep reset options for the next `reset`.

        Args:
            options: one dict for all rows, as `DreamVectorEnv.reset` takes it; None for none.

        Raises:
            TrainingError: a list: all rows are one environment.
        """
        if isinstance(options, list):
            raise TrainingError(
                "set_options() was given a list; all rows are one environment, so pass one dict"
            )
        self._waiting_options = dict(options) if options else None

    def close(self) -> None:
        """Close the dream."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """The environment's attribute, once for every row asked for."""
        return [getattr(self.env, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set the environment's attribute; there is one environment for all rows.

        Raises:
            TrainingError: only some of the rows were named.
        """
        self._require_all(indices, f"set {attr_name!r}")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call the environment's method once and repeat what it gave for every row.

        Raises:
            TrainingError: only some of the rows were named.
        """
        self._require_all(indices, f"call {method_name!r}")
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result] * self.num_envs

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """Whether rows are wrapped: true of `Monitor` only, whose info the adapter gives."""
        return [issubclass(wrapper_class, Monitor)] * len(self._rows(indices))

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """The environment's frames where it renders, else None for every row."""
        frames = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def _fill(
        self,
        infos: list[dict[str, Any]],
        rows: NDArray[np.int64],
        terminations: NDArray[np.bool_],
        info: dict[str, Any],
    ) -> None:
        final_observation = _numpy(info["final_obs"])
        returns, lengths = _numpy(info["episode"]["r"]), _numpy(info["episode"]["l"])
        seconds = round(time.monotonic() - self._made, 6)
        for row in rows.tolist():
            infos[row] = {
                "terminal_observation": _row(final_observation, row),
                "TimeLimit.truncated": not terminations[row],
                "episode": {"r": float(returns[row]), "l": int(lengths[row]), "t": seconds},
            }

    def _rows(self, indices: Indices) -> list[int]:
        return list(self._get_indices(indices))

    def _require_all(self, indices: Indices, what: str) -> None:
        if sorted(self._rows(indices)) != list(range(self.num_envs)):
            raise TrainingError(
                f"cannot {what} on rows {self._rows(indices)} only: all {self.num_envs} rows are "
                "one environment; leave indices out"
            )


def _numpy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy()
    if isinstance(value, dict):
        return {key: _numpy(part) for key, part in value.items()}
    return value


def _row(value: Any, row: int) -> Any:
    # a copy: a view of one row would keep the whole batch alive in a replay of infos
    if isinstance(value, dict):
        return {key: _row(part, row) for key, part in value.items()}
    return value[row].copy()
