"""Every learner bootstraps a truncated dream from its true last observation."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.train import LEARNERS, TrainConfig, train_policy
from tests.train.counting import AS_AN_END, GAMMA, HORIZON, LAST, RIGHT, counting_world

BOX = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
ON_POLICY = ("PPO", "A2C", "TRPO")
"""Algorithms that learn the value of a policy; the others store whether a step was truncated."""
OFF_POLICY = {
    "SAC": {"tau": 0.1, "ent_coef": 0.0},
    "TD3": {"tau": 0.1},
    "DDPG": {"tau": 0.1},
    "DQN": {"target_update_interval": 64},
    "TQC": {"tau": 0.1, "ent_coef": 0.0},
    "CrossQ": {"ent_coef": 0.0},
    "QRDQN": {"target_update_interval": 64},
}
"""Algorithms that learn the value of actions, and what makes them learn it in a few seconds. An
entropy bonus would be part of the value."""
SLOW = {"TQC", "CrossQ"}


def value_of(policy, observation: float) -> float:
    batch = torch.full((1, 1), observation)
    with torch.no_grad():
        if policy.card.learner in ("sb3", "sb3-contrib"):
            from dreamgym.train.sb3 import values

            return float(values(policy, batch))
        return float(policy.network.value(batch))


def cases(algorithms) -> list:
    return [
        pytest.param(name, algo, marks=pytest.mark.slow if algo in SLOW else ())
        for name, each in LEARNERS.items()
        for algo in each.algorithms
        if algo in algorithms
    ]


def test_the_three_answers_are_far_apart():
    # V(0) = GAMMA**LAST * (rewards up to the horizon + GAMMA**(HORIZON - LAST) * V(0))
    rewards = (1 - GAMMA ** (HORIZON - LAST)) / (1 - GAMMA)
    first = GAMMA**LAST * rewards / (1 - GAMMA**HORIZON)
    wrong = np.mean(
        [(1 - GAMMA**n) / (1 - GAMMA) + GAMMA**n * first for n in range(1, HORIZON - LAST + 1)]
    )
    assert RIGHT - wrong > 3
    assert wrong - AS_AN_END > 1


@pytest.mark.parametrize(("learner", "algo"), cases(ON_POLICY))
def test_a_truncation_is_bootstrapped_from_the_true_last_observation(learner, algo):
    pytest.importorskip(LEARNERS[learner].requires)
    few = {"num_envs": 32, "gamma": GAMMA, "net_arch": (32,), "reward_scale": 1.0}
    if algo == "A2C":  # one gradient step a rollout: more and smaller ones
        config, steps = TrainConfig(**few, n_steps=8, learning_rate=5e-3), 200 * 256
    else:
        config = TrainConfig(**few, n_steps=16, batch_size=128, learning_rate=3e-3)
        steps = 30 * 512
    policy = train_policy(
        counting_world(BOX), algo=algo, learner=learner, steps=steps, seed=0, config=config
    )
    assert value_of(policy, 1.0) == pytest.approx(RIGHT, abs=0.8)
    assert value_of(policy, -1.0) == pytest.approx(GAMMA**LAST * RIGHT, abs=0.8)


@pytest.mark.parametrize(("learner", "algo"), cases(OFF_POLICY))
def test_the_value_of_actions_goes_on_after_a_truncation(learner, algo):
    pytest.importorskip(LEARNERS[learner].requires)
    config = TrainConfig(
        num_envs=16,
        batch_size=128,
        gamma=GAMMA,
        learning_rate=3e-3,
        net_arch=(32,),
        reward_scale=1.0,
        learner={"learning_starts": 320, "gradient_steps": 4, **OFF_POLICY[algo]},
    )
    space = gym.spaces.Discrete(2) if "DQN" in algo else BOX
    policy = train_policy(
        counting_world(space), algo=algo, learner=learner, steps=5_120, seed=0, config=config
    )
    assert value_of(policy, 1.0) == pytest.approx(RIGHT, abs=0.8)
    assert value_of(policy, -1.0) == pytest.approx(GAMMA**LAST * RIGHT, abs=0.8)


def test_every_algorithm_is_in_one_of_the_two_tests():
    known = {*ON_POLICY, *OFF_POLICY, "CMA-ES"}  # which learns no value
    assert {algo for each in LEARNERS.values() for algo in each.algorithms} <= known
