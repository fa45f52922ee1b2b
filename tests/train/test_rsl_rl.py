"""rsl_rl's environment, and what only its learner does."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import TrainingError
from tests.small_worlds import TENSORS
from tests.train.counting import HORIZON, counting_world

pytest.importorskip("rsl_rl")
from dreamgym.train.rsl_rl import RslRlVecEnv

BOX = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)


def test_a_dream_is_recreated_on_tensors_and_tells_its_time_outs():
    env = RslRlVecEnv(DreamVectorEnv(counting_world(BOX), 4, device="cpu"))
    assert env.max_episode_length == HORIZON
    assert env.num_actions == 1
    first = env.get_observations()["policy"]
    assert first.tolist() == [[-1.0]] * 4
    for step in range(1, HORIZON + 1):
        with torch.inference_mode():
            observations, reward, done, extras = env.step(torch.full((4, 1), 1e3))
        assert reward.shape == done.shape == (4,)
        assert not reward.is_inference()
        assert env.episode_length_buf.tolist() == [step % HORIZON] * 4
        assert extras["time_outs"].tolist() == done.bool().tolist() == [step == HORIZON] * 4
    assert torch.equal(observations["policy"], first)


def test_actions_are_clipped_to_the_space(box_world):
    plain = DreamVectorEnv(box_world, 3, device="cpu", **TENSORS)
    env = RslRlVecEnv(DreamVectorEnv(box_world, 3, device="cpu", **TENSORS))
    plain.reset(seed=0), env.env.reset(seed=0)
    expected = plain.step(torch.tensor([[2.0, 0.0]] * 3))
    observations, reward, *_ = env.step(torch.tensor([[9.0, -9.0]] * 3))
    assert torch.equal(reward, expected[1])
    assert torch.equal(observations["policy"], expected[0])


def test_discrete_actions_are_refused(discrete_world):
    with pytest.raises(TrainingError, match="real numbers"):
        RslRlVecEnv(DreamVectorEnv(discrete_world, 2, device="cpu"))
