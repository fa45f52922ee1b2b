"""What a live agent of Stable-Baselines3 was trained behind, applied to what it acts on.

Such an agent sees its environment through wrappers that normalise, stack or transpose observations,
and its `predict` does not apply them: it expects observations that they have gone through. Wrappers
are recognised by the names of their classes, because no learner library is imported here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.errors import PolicyError

Array = NDArray[Any]

HARMLESS = ("VecMonitor", "VecCheckNan", "VecVideoRecorder")
"""Wrappers of Stable-Baselines3 that change neither observations nor actions."""

ENV_WRAPPERS = (
    gym.ObservationWrapper,
    gym.ActionWrapper,
    gym.vector.VectorObservationWrapper,
    gym.vector.VectorActionWrapper,
)
"""Gymnasium's wrappers that change observations or actions."""

PART_OF_THE_TASK = ("StickyAction", "DelayObservation")
"""Wrappers that make the task harder, and are not part of a policy."""


NO_STATISTICS = (
    "the agent was trained behind VecNormalize, and was loaded without its statistics: it would "
    "see observations of another scale. Load both, e.g. "
    "PPO.load(path, env=VecNormalize.load(statistics, venv)), and pass that agent; if VecNormalize "
    "scaled rewards only, pass agent.policy"
)


class AgentWrappers:
    """The wrappers between an agent and the observations of one environment.

    Args:
        agent: an object with `predict`. One without Stable-Baselines3's `get_env` has no wrappers.

    Attributes:
        observation_space: observation space inside the wrappers; None where the agent has no
            environment.
        env_wrappers: names of the wrappers around the environment itself, which are not applied.

    Raises:
        PolicyError: the agent was trained behind statistics that it was loaded without.
    """

    def __init__(self, agent: Any) -> None:
        self.observation_space: gym.Space[Any] | None = None
        self.env_wrappers: list[str] = []
        self._layers: list[Callable[[Any, Array, Array], Any]] = []
        get_env = getattr(agent, "get_env", None)
        env = get_env() if callable(get_env) else None
        wrappers = list(_vector_wrappers(env))
        known = any(_is_a(wrapper, "VecNormalize") for wrapper in wrappers)
        # An off-policy agent keeps this observation without any statistics, too. One that has
        # acted in the environment that it has now was not loaded without them.
        acted_here = env is not None and getattr(agent, "_last_obs", None) is not None
        known |= acted_here and hasattr(agent, "replay_buffer")
        if getattr(agent, "_last_original_obs", None) is not None and not known:
            raise PolicyError(NO_STATISTICS)
        if env is None:
            return
        for wrapper in reversed(wrappers):
            layer = _layer(wrapper)
            if layer is not None:
                self._layers.append(layer)
        inner = wrappers[-1].venv if wrappers else env
        self.observation_space = inner.observation_space
        self.env_wrappers = _env_wrappers(inner)

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

    def check_env(self, env: gym.Env[Any, Any]) -> None:
        """Check that an environment has the wrappers that the agent's own environment had.

        Raises:
            PolicyError: one that changes observations or actions is missing.
        """
        present = _env_wrappers(env)
        missing = [name for name in self.env_wrappers if name not in present]
        name = env.spec.id if env.spec is not None else str(env)
        if missing:
            raise PolicyError(
                f"the agent was trained behind {', '.join(missing)}, and {name} is not wrapped in "
                "it: the agent would see other observations or act otherwise. Pass a function that "
                "makes the environment with the same wrappers, e.g. env=lambda: "
                f"{missing[-1]}(gym.make(...)), or as policy a function of one raw observation "
                "that does what they do"
            )
        if "NormalizeObservation" in self.env_wrappers:
            warnings.warn(
                "the agent was trained behind NormalizeObservation, and the environment's own "
                "NormalizeObservation starts with other statistics: returns may be too low. Train "
                "behind VecNormalize instead, whose statistics are used, or copy obs_rms",
                UserWarning,
                stacklevel=4,
            )


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
    if _is_a(wrapper, "VecNormalize"):
        return lambda observations, starting, acting: wrapper.normalize_obs(observations)
    if _is_a(wrapper, "VecFrameStack"):
        return _FrameStack(wrapper.stacked_obs)
    if _is_a(wrapper, "VecTransposeImage"):
        return lambda observations, starting, acting: wrapper.transpose_observations(observations)
    if _is_a(wrapper, "VecExtractDictObs"):
        return lambda observations, starting, acting: observations[wrapper.key]
    if not any(_is_a(wrapper, name) for name in HARMLESS):
        warnings.warn(
            f"the agent was trained behind {type(wrapper).__name__}, which dreamgym does not know "
            "and does not apply: if it changes observations or actions, the agent does not act as "
            "it was trained. Pass a function of one raw observation that applies it, or "
            "agent.policy if it changes neither",
            UserWarning,
            stacklevel=6,
        )
    return None


def _vector_wrappers(env: Any) -> Iterator[Any]:
    """Yield the wrappers of Stable-Baselines3 around an environment, from the outermost on."""
    while hasattr(env, "venv"):
        yield env
        env = env.venv


def _env_wrappers(env: Any) -> list[str]:
    """Return the names of Gymnasium's wrappers that change observations or actions."""
    env = next(iter(getattr(env, "envs", [])), env)  # one of the environments of a DummyVecEnv
    env = env if isinstance(env, gym.Env | gym.vector.VectorEnv) else getattr(env, "env", None)
    names = []
    while isinstance(env, gym.Wrapper | gym.vector.VectorWrapper):
        if isinstance(env, ENV_WRAPPERS) and type(env).__name__ not in PART_OF_THE_TASK:
            names.append(type(env).__name__)
        env = env.env
    return names


def _is_a(wrapper: Any, name: str) -> bool:
    return any(each.__name__ == name for each in type(wrapper).__mro__)
