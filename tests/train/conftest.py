"""Worlds that were never fitted: what they dream is nonsense, but it is quick and never changes."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import MDNRNN, MDNRNNConfig, Statistics, zero_action
from dreamgym.starts import Starts
from dreamgym.world import World

ROWS = 64


def unfitted_world(env_id: str, *, horizon: int = 12) -> World:
    env = gym.make(env_id)
    size = env.observation_space.shape[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MDNRNNConfig(hidden=8, trunk=8, head=8)
        model = MDNRNN(env.observation_space, env.action_space, config)
    one = torch.ones(size)
    model.set_statistics(
        Statistics(
            mean=0 * one,
            std=0.1 * one,
            low=-one,
            high=one,
            delta_std=0.1 * one,
            reward_mean=torch.tensor(3.0),
            reward_std=torch.tensor(5.0),
        )
    )
    with torch.no_grad():
        # rare terminations: most dreams reach the horizon, some do not
        model.heads[-1].bias[1] = -3.0
        first = torch.as_tensor(np.stack([env.reset(seed=row)[0] for row in range(ROWS)]))
        noise = torch.rand((ROWS, model.noise_dim), generator=torch.Generator().manual_seed(0))
        action = zero_action(env.action_space, ROWS, "cpu")
        states = model.observe(model.initial(ROWS), action, first, noise)
    model.eval().requires_grad_(False)
    return World(
        model=model,
        starts=Starts(states=states, beginnings=ROWS // 2),
        env_spec=env.spec.to_json(),
        horizon=horizon,
        name="unfitted",
    )


@pytest.fixture(scope="session")
def cartpole_world() -> World:
    return unfitted_world("CartPole-v1")


@pytest.fixture(scope="session")
def pendulum_world() -> World:
    return unfitted_world("Pendulum-v1")
