"""What a live agent of Stable-Baselines3 was trained behind, applied to what it acts on.

Such an agent sees its environment through wrappers that normalise, stack or transpose observations,
and its `predict` does not apply them: it expects observations that they have gone through.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from dreamgym.data.agent_wrappers import AgentWrappers, env_wrappers
from dreamgym.errors import PolicyError

Array = NDArray[Any]

HARMLESS = (VecMonitor, VecCheckNan, VecVideoRecorder)
"""Wrappers of Stable-Baselines3 that change neither observations nor actions."""

NO_STATISTICS = (
    "the agent was trained behind VecNormalize, and was loaded without its statistics: it would "
    "see observations of another scale. Load both, e.g. "
    "PPO.load(path, env=VecNormalize.load(statistics, venv)), and pass that agent; if VecNormalize "
    "scaled rewards only, pass agent.policy"
)


UNKNOWN_STATISTICS = (
    "it cannot be told whether {name} was trained behind VecNormalize, for Stable-Baselines3 does "
    "not record it for an off-policy algorithm. If it was, it now sees observations of another "
    "scale: load the agent with env=VecNormalize.load(statistics, venv), and pass that agent"
)


def _judge_missing_statistics(agent: Any) -> None:
    """Refuse, or warn about, an agent that has unnormalised observations but no statistics.

    Only `VecNormalize` makes an on-policy algorithm keep such observations. Off-policy ones always
    keep them; one with experience in its replay buffer was trained with what is here.
    """
    replay = getattr(agent, "replay_buffer", None)
    if not hasattr(agent, "replay_buffer"):
        raise PolicyError(NO_STATISTICS)
    if replay is None or not replay.size():
        text = UNKNOWN_STATISTICS.format(name=f"this {type(agent).__name__}")
        warnings.warn(text, UserWarning, stacklevel=6)


class SB3AgentWrappers(AgentWrappers):
    """The wrappers between an agent of Stable-Baselines3 and the observations of one environment.

    Raises:
        PolicyError: the agent was trained behind statistics that it was loaded without.
    """

    def __init__(self, agent: Any) -> None:
        super().__init__(agent)
        self._layers: list[Callable[[Any, Array, Array], Any]] = []
        env = agent.get_env() if isinstance(agent, BaseAlgorithm) else None
        wrappers = list(_vector_wrappers(env))
        has_statistics = any(isinstance(wrapper, VecNormalize) for wrapper in wrappers)
        if getattr(agent, "_last_original_obs", None) is not None and not has_statistics:
            _judge_missing_statistics(agent)
        if env is None:
            return
        for wrapper in reversed(wrappers):
            layer = _layer(wrapper)
            if layer is not None:
                self._layers.append(layer)
        inner = wrappers[-1].venv if wrappers else env
        self.observation_space = inner.observation_space
        # One of the environments of a DummyVecEnv, or the one that an adapter has.
        one = next(iter(getattr(inner, "envs", [])), inner)
        one = one if isinstance(one, gym.Env) else getattr(one, "env", None)
        self.env_wrappers = env_wrappers(one)

    def __call__(self, observations: Any, starting: Array, acting: Array) -> Any:
        """Return observations as the agent saw them in its training.

        Args:
            observations: (B, ...) observations of the environment, or a dict of them.
            starting: (B,) bool, rows in which an episode starts.
            acting: (B,) bool, rows that have an observation; others keep their frame stack.
        """
        for layer in self._layers:
            observations = layer(observations, starting, acting)
        return observations


class _FrameStack:
    """The frame stack of `VecFrameStack`, for any number of rows.

    Args:
        stacked: Stable-Baselines3's `StackedObservations`.
    """

    def __init__(self, stacked: Any) -> None:
        self._parts = {
            key: _FrameStack(part)
            for key, part in getattr(stacked, "sub_stacked_observations", {}).items()
        }
        self._axis = 0 if self._parts else int(stacked.stack_dimension)
        self._frames = int(stacked.n_stack)
        self._stack: Array | None = None

    def __call__(self, observations: Any, starting: Array, acting: Array) -> Any:
        if self._parts:
            return {
                key: part(observations[key], starting, acting) for key, part in self._parts.items()
            }
        width = observations.shape[self._axis]
        before = self._stack
        if before is None or len(before) != len(observations):
            before = np.concatenate([np.zeros_like(observations)] * self._frames, self._axis)
        kept = np.take(before, range(width, self._frames * width), self._axis)
        kept[starting] = 0
        after = np.concatenate([kept, observations], self._axis)
        after[~acting] = before[~acting]
        self._stack = after
        return after.copy()


def _layer(wrapper: Any) -> Callable[[Any, Array, Array], Any] | None:
    """Return what a wrapper of Stable-Baselines3 does to observations, or None for nothing."""
    if isinstance(wrapper, VecNormalize):
        return lambda observations, starting, acting: wrapper.normalize_obs(observations)
    if isinstance(wrapper, VecFrameStack):
        return _FrameStack(wrapper.stacked_obs)
    if isinstance(wrapper, VecTransposeImage):
        return lambda observations, starting, acting: wrapper.transpose_observations(observations)
    if isinstance(wrapper, VecExtractDictObs):
        return lambda observations, starting, acting: observations[wrapper.key]
    if not isinstance(wrapper, HARMLESS):
        warnings.warn(
            f"the agent was trained behind {type(wrapper).__name__}, which dreamgym does not know "
            "and does not apply: if it changes observations or actions, the agent does not act as "
            "it was trained. Pass a function of one raw observation that applies it, or "
            "agent.policy if it changes neither",
            UserWarning,
            stacklevel=7,
        )
    return None


def _vector_wrappers(env: Any) -> Iterator[Any]:
    """Yield the wrappers of Stable-Baselines3 around an environment, from the outermost on."""
    while hasattr(env, "venv"):
        yield env
        env = env.venv
