"""A world whose values are known in closed form, and tell from which observation one bootstraps."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch

from dreamgym.models.base import Prediction, WorldModel
from dreamgym.world.start_states import StartStates
from dreamgym.world.world import World

LAST, HORIZON, GAMMA = 4, 10, 0.9

RIGHT = 1 / (1 - GAMMA)
"""V of the last observation where a truncation is bootstrapped from the true last observation."""

AS_AN_END = float(np.mean([(1 - GAMMA**n) / (1 - GAMMA) for n in range(1, HORIZON - LAST + 1)]))
"""The same where it is taken for an end, mean over the steps at which it is seen."""


@dataclass(frozen=True, kw_only=True)
class CountingConfig:
    """Nothing to choose."""


class Counting(WorldModel):
    """Counts its steps up to LAST, and pays 1 for each step from there on; it never terminates.

    The observation is the count, scaled to [-1, 1]. A dream begins at 0 and is truncated after
    HORIZON steps, at a count of LAST. Of an infinite episode V(LAST) is RIGHT and V(0) is
    GAMMA**LAST times that, so a bootstrap from the first observation of the next episode is low.
    """

    config_type = CountingConfig

    def __init__(self, action_space: gym.Space) -> None:
        space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        super().__init__(space, action_space, CountingConfig())
        self.feature_dim, self.noise_dim = 1, 0
        self.register_buffer("weight", torch.ones(1))

    def initial(self, batch_size):
        return {"count": self.weight.new_zeros(batch_size, 1)}

    def observe(self, state, action, observation, noise):
        return {"count": (observation + 1) / 2 * LAST}

    def step(self, state, action, noise, temperature=1.0):
        reward = (state["count"][:, 0] >= LAST).float()
        count = (state["count"] + 1).clamp(max=LAST)
        zeros = torch.zeros_like(reward)
        return {"count": count}, Prediction(reward, zeros, zeros)

    def features(self, state):
        return state["count"] / LAST * 2 - 1

    def decode(self, state):
        return self.features(state)

    def loss(self, segment, noise):
        raise NotImplementedError


def counting_world(action_space: gym.Space) -> World:
    model = Counting(action_space).eval()
    return World(
        model=model,
        starts=StartStates(states=model.initial(8), num_episode_starts=8),
        env_spec=None,
        horizon=HORIZON,
        termination=1.0,
        name="counting",
    )
