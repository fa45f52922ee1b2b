"""What a learner needs to know of a dream's scales, and the layer that uses it.

A policy standardises its own input with fixed numbers, so the policy that comes out of training
takes raw observations and acts in the real environment as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import TrainingError
from dreamgym.world.world import World

_ROWS = 256


_STEPS = 64


_REPEAT = 0.8  # a random policy that repeats its last action reaches further than a white one


_CLIP = 10.0


class Standardise(BaseFeaturesExtractor):
    """Subtract a fixed mean, divide by a fixed standard deviation, clip to 10 on either side."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, observation_space: gym.Space[Any], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Make the layer.

        Args:
            observation_space: a Box of any shape; it is flattened.
            mean: one number for each of its entries.
            std: likewise, all above 0.
        """
        super().__init__(observation_space, features_dim=len(mean))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Standardised observations (B, features_dim) of raw ones (B, ...)."""
        return ((observations.flatten(1) - self.mean) / self.std).clamp(-_CLIP, _CLIP)


@dataclass(frozen=True, kw_only=True)
class DreamScales:
    """The scales of one world's dreams under a random policy.

    Attributes:
        mean: of each entry of the (flattened) observation.
        std: likewise; entries that never change have 1.
        reward_scale: one over the root mean square of discounted returns so far.
    """

    mean: list[float]
    std: list[float]
    reward_scale: float


def measure_scales(
    world: World, *, seed: int, gamma: float, options: dict[str, Any]
) -> DreamScales:
    """Run a random policy in the dream for a moment and measure.

    Args:
        world: whose dreams.
        seed: of the dream and of the actions.
        gamma: the learner's discount.
        options: further options of `DreamVectorEnv`.

    Returns:
        The scales; the same for the same seed.

    Raises:
        TrainingError: the view is not a Box of numbers.
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
    size = float(np.sqrt(np.mean(np.square(returns))))
    return DreamScales(
        mean=[float(value) for value in flat.mean(0)],
        std=[float(value) if value > 1e-6 else 1.0 for value in std],
        reward_scale=1 / size if size > 1e-6 else 1.0,
    )


def _random_rollout(
    env: DreamVectorEnv, seed: int, gamma: float
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    actions = env.action_space.sample()
    so_far = np.zeros(env.num_envs)
    observations, returns = [observation], []
    for _ in range(_STEPS):
        fresh = rng.random(env.num_envs) >= _REPEAT
        actions = np.where(
            fresh.reshape(-1, *[1] * (actions.ndim - 1)), env.action_space.sample(), actions
        )
        observation, reward, terminated, truncated, _ = env.step(actions)
        so_far = gamma * so_far + reward
        observations.append(observation)
        returns.append(so_far.copy())
        so_far[np.asarray(terminated) | np.asarray(truncated)] = 0
    return np.stack(observations), np.stack(returns)
