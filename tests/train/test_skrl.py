"""skrl's environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.dream.wrappers import ScaleReward
from dreamgym.errors import TrainingError
from tests.small_worlds import ACTION_SPACES, TENSORS, small_world
from tests.train.counting import HORIZON, counting_world

pytest.importorskip("skrl")
from dreamgym.train.skrl import SkrlEnv

BOX = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)


def test_a_step_returns_the_observation_after_the_action_and_the_reset_comes_after_it():
    env = SkrlEnv(DreamVectorEnv(counting_world(BOX), 4, device="cpu"))
    first, _ = env.reset()
    for step in range(1, HORIZON + 1):
        after, reward, terminated, truncated, _ = env.step(torch.zeros(4, 1))
        assert torch.equal(env.reset()[0], after), "skrl's environments are reset once"
        for part in (reward, terminated, truncated):
            assert part.shape == (4, 1)
        assert truncated.tolist() == [[step == HORIZON]] * 4
        assert not terminated.any()
    assert after.tolist() == [[1.0]] * 4, "the true last observation"
    assert torch.equal(env.step(torch.zeros(4, 1))[0], first)


def test_a_wrapped_dream_in_a_mode_that_would_corrupt_is_refused():
    dream = DreamVectorEnv(counting_world(BOX), 4, device="cpu", **TENSORS)
    with pytest.raises(TrainingError, match="NextStep"):
        SkrlEnv(ScaleReward(dream, 2.0))


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_actions_of_every_space_are_taken(action):
    env = SkrlEnv(DreamVectorEnv(small_world(action=action), 4, device="cpu"))
    env.reset()
    space = env.action_space
    sample = torch.as_tensor(np.stack([space.sample() for _ in range(4)])).reshape(4, -1)
    if action == "box":
        sample = sample * 100
    observation, *_ = env.step(sample)
    assert observation.shape == (4, 4)
