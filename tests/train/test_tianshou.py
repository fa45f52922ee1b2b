"""Tianshou's vector environment around a dream."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.dream import DreamVectorEnv
from dreamgym.errors import TrainingError
from tests.train.counting import HORIZON, LAST, counting_world

pytest.importorskip("tianshou")

from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.data import Collector, VectorReplayBuffer

from dreamgym.train.tianshou import TianshouVecEnv

BOX = gym.spaces.Box(-2.0, 6.0, (1,), np.float32)


@pytest.fixture
def env():
    return TianshouVecEnv(DreamVectorEnv(counting_world(BOX), 4), reward_scale=0.5)


def test_the_agent_acts_between_minus_one_and_one_and_rows_are_reset_by_themselves(env):
    assert env.action_space[0] == gym.spaces.Box(-1.0, 1.0, (1,))
    assert len(env) == len(env.observation_space) == 4
    observation, infos = env.reset()
    assert observation.tolist() == [[-1.0]] * 4
    assert infos.tolist() == [{}] * 4
    for _ in range(HORIZON):
        result = env.step(np.full((4, 1), 9.0))
        observation, reward, terminated, truncated, _ = result
    assert truncated.all()
    assert not terminated.any()
    assert observation.tolist() == [[1.0]] * 4, "the true last observation"
    assert reward.tolist() == [0.5] * 4
    again, _ = env.reset([1, 3])
    assert again.tolist() == [[-1.0]] * 2
    # Rows that are left out are stepped as well, and start new episodes where they have ended.
    observation, reward, *_ = env.step(np.zeros((2, 1)), [1, 3])
    assert observation.shape == (2, 1)
    assert observation[:, 0] == pytest.approx(-1 + 2 / LAST)
    with pytest.raises(TrainingError, match="Disabled"):
        TianshouVecEnv(gym.wrappers.vector.ClipReward(DreamVectorEnv(counting_world(BOX), 2), 0, 1))


@pytest.mark.parametrize("limit", [{"n_step": 60}, {"n_episode": 6}])
def test_a_collector_of_tianshou_collects_from_it(env, limit):
    class Actor(torch.nn.Module):
        def forward(self, observation, state=None, info=None):
            return torch.as_tensor(observation), state

    def distribution(mean):
        return torch.distributions.Independent(torch.distributions.Normal(mean, 1.0), 1)

    policy = ProbabilisticActorPolicy(
        actor=Actor(), dist_fn=distribution, action_space=env.action_space[0]
    )
    collector = Collector(policy, env, VectorReplayBuffer(400, 4))
    collector.reset()
    result = collector.collect(**limit)
    # each dream pays 0.5 for the steps after the first LAST ones
    assert result.returns.tolist() == [(HORIZON - LAST) / 2] * len(result.returns)
    assert len(result.returns) == limit.get("n_episode", 4)
    assert set(result.lens.tolist()) == {HORIZON}
