"""Known rewards and terminations against their real environments."""

from __future__ import annotations

import importlib.util

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models.wrappers import REWARDS, TERMINATIONS
from dreamgym.models.wrappers.known import Known

STEPS = 2000
MUJOCO = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")


def transitions(env_id: str, **arguments) -> tuple:
    """Return observations, actions, rewards, terminations and next observations of random play."""
    env = gym.make(env_id, **arguments)
    env.action_space.seed(0)
    rows: list[tuple] = []
    observation, _ = env.reset(seed=0)
    while len(rows) < STEPS:
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, reward, terminated, following))
        observation = env.reset()[0] if terminated or truncated else following
    return tuple(torch.as_tensor(np.array(column)) for column in zip(*rows, strict=True))


def computed(known: Known, rows: tuple) -> torch.Tensor:
    observation, action, _, _, following = rows
    assert observation.shape[1] in known.widths
    values = known.function(observation.float(), action, following.float())
    assert values.shape == (STEPS,)
    return values.float()


def maybe_skipped(env_id: str):
    missing = env_id in MUJOCO and importlib.util.find_spec("mujoco") is None
    skip = pytest.mark.skipif(missing, reason="mujoco is not installed")
    return pytest.param(env_id, marks=skip)


@pytest.mark.parametrize("env_id", [maybe_skipped(env_id) for env_id in REWARDS])
def test_known_rewards_are_the_real_ones(env_id):
    shown = {"exclude_current_positions_from_observation": False} if env_id in MUJOCO else {}
    rows = transitions(env_id, **shown)
    torch.testing.assert_close(
        computed(REWARDS[env_id], rows), rows[2].float(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("env_id", [maybe_skipped(env_id) for env_id in TERMINATIONS])
def test_known_terminations_are_the_real_ones(env_id, shown):
    arguments = {"exclude_current_positions_from_observation": not shown}
    rows = transitions(env_id, **(arguments if env_id in MUJOCO else {}))
    assert torch.equal(computed(TERMINATIONS[env_id], rows).bool(), rows[3])
