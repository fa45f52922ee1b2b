"""Small unfitted worlds: their weights are random, their shapes and behaviour are the real ones."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch

from dreamgym.models import FAMILIES, Moments, Statistics, WorldModel
from dreamgym.starts import Starts
from dreamgym.world import World

ACTION_SPACES = {
    "discrete": gym.spaces.Discrete(3),
    "box": gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 1])),
    "multi-discrete": gym.spaces.MultiDiscrete([2, 3]),
}


MOMENTS = Moments(
    mean=torch.tensor([0.0, 0.1, -0.2, 0.3]),
    std=torch.tensor([1.0, 0.5, 2.0, 1.5]),
    # So wide that no dream leaves it: episodes end as the tests say, and not before.
    low=torch.full((4,), -1e6),
    high=torch.full((4,), 1e6),
    delta_std=torch.tensor([0.1, 0.2, 0.3, 0.4]),
)
STATISTICS = Statistics(
    observation={"": MOMENTS},
    reward_mean=torch.tensor(0.5),
    reward_std=torch.tensor(2.0),
    worst_return=torch.tensor(-30.0),
)


def small_model(family: str, action: str = "discrete", seed: int = 0) -> WorldModel:
    """A model of four numbers in [-3, 3] with random weights."""
    space = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
    torch.manual_seed(seed)
    model = FAMILIES[family](space, ACTION_SPACES[action], FAMILIES[family].config_type())
    model.set_statistics(STATISTICS)
    return model.eval().requires_grad_(False)


def small_world(family: str = "mdn-rnn", action: str = "discrete", horizon: int = 7) -> World:
    """A world of a small model, with 64 starts of which the first 16 are beginnings."""
    model = small_model(family, action)
    generator = torch.Generator().manual_seed(1)
    states = {
        key: torch.randn(leaf.shape, generator=generator) for key, leaf in model.initial(64).items()
    }
    return World(
        model=model,
        starts=Starts(states=states, beginnings=16),
        env_spec=None,
        horizon=horizon,
        provenance={"dataset": "none"},
        quality={"reward_rmse": 0.5},
        name="small",
    )


def random_actions(space: gym.Space, batch: int, seed: int = 0) -> torch.Tensor:
    """(batch, ...) random actions of a space."""
    space.seed(seed)
    return torch.as_tensor(np.stack([space.sample() for _ in range(batch)]))
