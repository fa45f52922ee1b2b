"""Scales of a dream's observations and rewards, which learners need.

A policy standardises its own input by these numbers, so the trained policy takes raw observations
and acts in the real environment without a wrapper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import TrainingError
from dreamgym.world.world import World

_ROWS = 256
_STEPS = 64
_STICKINESS = 0.8  # a random policy that repeats its actions reaches further
_ROUNDING = 16 * float(np.finfo(np.float32).eps)  # what varies less, relatively, is constant
_SMALLEST_SCALE = 1e-30  # has a reciprocal in float32


@dataclass(frozen=True, kw_only=True)
class DreamScales:
    """Scales of one world's dreams under a random policy.

    Attributes:
        mean: mean of each entry of the flattened observation.
        std: standard deviation of each entry; 1 for entries that never change.
        reward_scale: one over the root mean square of the discounted returns so far.
    """

    mean: list[float]
    std: list[float]
    reward_scale: float


def measure_scales(
    world: World, *, seed: int, gamma: float, options: dict[str, Any]
) -> DreamScales:
    """Run a random policy in the dream for a few steps and measure the scales.

    Args:
        world: the world to dream in.
        seed: seed of the dream and of the actions; the same seed gives the same scales.
        gamma: discount factor of the learner.
        options: further options of `DreamVectorEnv`.

    Raises:
        TrainingError: the view is not a Box.
    """
    env = DreamVectorEnv(
        world, _ROWS, **{**options, "output": "numpy", "autoreset_mode": "SameStep"}
    )
    try:
        if not isinstance(env.single_observation_space, gym.spaces.Box):
            raise TrainingError(
                f"the dream's observation space is {env.single_observation_space}; a policy can be "
                "trained on a Box: pass view='latent'"
            )
        observations, returns = _random_rollout(env, seed, gamma)
    finally:
        env.close()
    flat = observations.reshape(-1, observations[0, 0].size).astype(np.float64)
    std = flat.std(0)
    rounding = np.maximum(_ROUNDING * np.abs(flat).max(0), _SMALLEST_SCALE)
    size = float(np.sqrt(np.mean(np.square(returns))))
    return DreamScales(
        mean=[float(value) for value in flat.mean(0)],
        std=[float(value) for value in np.where(std > rounding, std, 1.0)],
        reward_scale=1 / size if size > _SMALLEST_SCALE else 1.0,
    )


def _random_rollout(
    env: DreamVectorEnv, seed: int, gamma: float
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return observations (steps + 1, N, ...) and discounted returns so far (steps, N)."""
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    actions = env.action_space.sample()
    returns_so_far = np.zeros(env.num_envs)
    observations, returns = [observation], []
    for _ in range(_STEPS):
        changes = rng.random(env.num_envs) >= _STICKINESS
        actions = np.where(
            changes.reshape(-1, *[1] * (actions.ndim - 1)), env.action_space.sample(), actions
        )
        observation, reward, terminated, truncated, _ = env.step(actions)
        returns_so_far = gamma * returns_so_far + reward
        observations.append(observation)
        returns.append(returns_so_far.copy())
        returns_so_far[np.asarray(terminated) | np.asarray(truncated)] = 0
    return np.stack(observations), np.stack(returns)
