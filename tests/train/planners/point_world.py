"""A world with known optima: a point that an action moves, and a target."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch

from dreamgym.models import Prediction, WorldModel

MOVES = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
OBSERVATION = gym.spaces.Box(-10.0, 10.0, (2,), np.float32)
BOX = gym.spaces.Box(np.float32([-1.0, -4.0]), np.float32([1.0, 2.0]))
DISCRETE = gym.spaces.Discrete(4, start=3)
MULTI = gym.spaces.MultiDiscrete([3, 5], start=[-1, -2])


@dataclass(frozen=True, kw_only=True)
class PointConfig:
    """Config of a `PointWorld`.

    Attributes:
        target: where the reward is highest.
        deadly: x coordinate from which on the episode terminates.
    """

    target: tuple[float, float] = (0.6, -1.5)
    deadly: float = 1e6


class PointWorld(WorldModel):
    """The action is added to the point; the reward is minus the squared distance to a target."""

    config_type = PointConfig

    def __init__(self, observation_space, action_space, config=None):
        super().__init__(observation_space, action_space, config or PointConfig())
        self.feature_dim, self.noise_dim = 2, 1
        self.target = torch.nn.Parameter(torch.tensor(self.config.target), requires_grad=False)

    def initial(self, batch_size):
        return {"x": torch.zeros(batch_size, 2)}

    def observe(self, state, action, observation, noise):
        return {"x": observation.float()}

    def step(self, state, action, noise, temperature=1.0):
        move = MOVES[action - 3] if isinstance(self.action_space, gym.spaces.Discrete) else action
        x = state["x"] + move
        reward = -(x - self.target).square().sum(-1)
        terminated = (x[:, 0] >= self.config.deadly).float()
        return {"x": x}, Prediction(reward, terminated, torch.zeros_like(reward))

    def features(self, state):
        return state["x"]

    def decode(self, state):
        return state["x"]

    def loss(self, segment, noise):
        raise NotImplementedError
