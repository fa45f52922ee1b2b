"""Every learner bootstraps a truncated dream from its true last observation."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.train import LEARNERS, TrainConfig, train_policy
from tests.train.counting import AS_AN_END, GAMMA, HORIZON, LAST, RIGHT, counting_world

BOX = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
ON_POLICY = ("PPO", "TRPO")
"""Algorithms that learn the value of a policy; the others store whether a step was truncated."""


def value_of(policy, observation: float) -> float:
    batch = torch.full((1, 1), observation)
    with torch.no_grad():
        if policy.card.learner in ("sb3", "sb3-contrib"):
            return float(policy.network.predict_values(batch))
        return float(policy.network.value(batch))


def test_the_three_answers_are_far_apart():
    # V(0) = GAMMA**LAST * (rewards up to the horizon + GAMMA**(HORIZON - LAST) * V(0))
    rewards = (1 - GAMMA ** (HORIZON - LAST)) / (1 - GAMMA)
    first = GAMMA**LAST * rewards / (1 - GAMMA**HORIZON)
    wrong = np.mean(
        [(1 - GAMMA**n) / (1 - GAMMA) + GAMMA**n * first for n in range(1, HORIZON - LAST + 1)]
    )
    assert RIGHT - wrong > 3
    assert wrong - AS_AN_END > 1


@pytest.mark.parametrize(
    ("learner", "algo"),
    [
        (name, algo)
        for name, each in LEARNERS.items()
        for algo in each.algorithms
        if algo in ON_POLICY
    ],
)
def test_a_truncation_is_bootstrapped_from_the_true_last_observation(learner, algo):
    pytest.importorskip(LEARNERS[learner].requires)
    config = TrainConfig(
        num_envs=32,
        n_steps=16,
        batch_size=128,
        gamma=GAMMA,
        learning_rate=3e-3,
        net_arch=(32,),
        reward_scale=1.0,
    )
    policy = train_policy(
        counting_world(BOX), algo=algo, learner=learner, steps=30 * 512, seed=0, config=config
    )
    assert value_of(policy, 1.0) == pytest.approx(RIGHT, abs=0.8)
    assert value_of(policy, -1.0) == pytest.approx(GAMMA**LAST * RIGHT, abs=0.8)
