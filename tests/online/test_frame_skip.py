"""The online loop in worlds whose steps are blocks of real steps."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

import dreamgym
from dreamgym import improve
from dreamgym.data import Dataset, FrameSkip
from dreamgym.online import LatestPolicy, act, learn
from dreamgym.train import TrainConfig

ENV = "CartPole-v1"


@pytest.mark.parametrize("actions", ["blocks", "repeated"])
def test_worlds_and_policies_act_for_blocks_and_real_steps_are_counted_one_by_one(
    small, tmp_path, actions
):
    config = replace(small, frame_skip=2, actions=actions)
    result = improve(ENV, real_steps=180, out=tmp_path / "o", config=config)
    skip = FrameSkip(steps=2, actions=actions)
    world, policy = result.load_world(), result.load_policy()
    assert world.frame_skip == policy.frame_skip == skip
    assert world.action_space == skip.space(gym.spaces.Discrete(2))
    assert [each["steps"] for each in result.rounds] == [120, 60]
    for each in result.rounds:
        with Dataset(result.folder / each["data"]) as data:
            assert data.num_steps == each["steps"]
            assert data.action_space == gym.spaces.Discrete(2)
    assert dreamgym.evaluate(policy, world.real_env, episodes=1).steps > 0


def test_evaluation_steps_are_real_steps(small, tmp_path):
    config = replace(small, frame_skip=2, evaluation_episodes=3)
    (figures,) = improve(ENV, real_steps=120, out=tmp_path / "o", config=config).rounds
    # one reward for each real step
    assert figures["evaluation_steps"] == pytest.approx(3 * figures["real_return"])
    assert figures["evaluation_steps"] > 3 * figures["real_length"]


def test_schedules_count_steps_of_the_dream(small):
    config = replace(small, frame_skip=4, dream_steps=None, dream_ratio=2.0, train_ratio=8.0)
    assert config.training_steps(1000) == 500
    fit = dreamgym.FitConfig(batch_size=10, segment_length=10)
    assert config.updates(1000, fit) == 20


def test_real_transitions_of_blocks_go_into_the_batches(small, tmp_path):
    train = TrainConfig(
        num_envs=8,
        batch_size=16,
        real_share=0.5,
        learner={"buffer_size": 500, "learning_starts": 16},
    )
    config = replace(
        small, frame_skip=3, algo="SAC", train=train, first_steps=200, max_episode_steps=50
    )
    result = improve("Pendulum-v1", real_steps=200, out=tmp_path / "o", config=config)
    assert result.load_policy().action_space.shape == (3,)


def test_actor_and_learner_take_a_frame_skip(small, tmp_path):
    config = replace(small, frame_skip=2, actions="repeated")
    act(ENV, tmp_path, steps=130, config=config)
    learn(tmp_path, versions=1, config=config)
    act(ENV, tmp_path, steps=40, config=config)
    assert learn(tmp_path, versions=2, config=config)["real_steps"] == 170
    with gym.make(ENV) as env:
        policy = LatestPolicy(tmp_path, env, config)
        policy.reset([0], [0])
        assert policy.version == 2
        chosen = [policy.act([np.zeros(4, np.float32)], [0])[0] for _ in range(40)]
    assert chosen[::2] == chosen[1::2]
