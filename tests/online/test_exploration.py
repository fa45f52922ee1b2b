"""Exploration in recordings."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from dreamgym.data import FrameSkip
from dreamgym.data.policies import FunctionPolicy
from dreamgym.errors import PolicyError
from dreamgym.online import NoisyPolicy

SPACE = gym.spaces.Discrete(1000, start=1)


def actions(policy, episodes, steps=200):
    policy.reset(range(episodes), range(100, 100 + episodes))
    observations = [np.zeros(2)] * episodes
    return np.array([policy.act(observations, range(episodes)) for _ in range(steps)]).T


def own(observation):
    return 0  # outside the space, so that random actions are told apart


def test_every_episode_draws_its_share_of_random_actions():
    drawn = actions(NoisyPolicy(FunctionPolicy(own), SPACE, 0.5), 40) > 0
    shares = drawn.mean(1)
    assert shares.max() < 0.65
    assert shares.min() < 0.1
    assert 0.15 < shares.mean() < 0.35


def test_without_noise_it_is_the_policy():
    assert not actions(NoisyPolicy(FunctionPolicy(own), SPACE, 0.0), 5).any()


def test_a_row_depends_on_its_seed_alone():
    policy = NoisyPolicy(FunctionPolicy(own), SPACE, 1.0)
    np.testing.assert_array_equal(actions(policy, 4)[:2], actions(policy, 2))


@pytest.mark.parametrize("mode", ["blocks", "repeated"])
def test_with_a_frame_skip_a_whole_action_is_random_or_not(mode):
    space, skip = gym.spaces.Discrete(50, start=1), FrameSkip(steps=3, actions=mode)
    own_action = np.zeros(3, int) if mode == "blocks" else 0
    policy = FunctionPolicy(lambda observation: own_action, name="p")
    policy.frame_skip = skip
    noisy = NoisyPolicy(policy, space, 1.0)
    assert noisy.frame_skip == skip
    drawn = actions(noisy, 20)  # ([3,] 20, 200)
    drawn = np.moveaxis(drawn, 0, -1) if mode == "blocks" else drawn[..., None]
    random = (drawn > 0).any(-1)
    assert ((drawn > 0).all(-1) == random).all()
    assert 0.3 < random.mean() < 0.7
    assert drawn.max() <= 50
    if mode == "blocks":  # sticky inside a block, too
        assert (drawn[..., 1:] == drawn[..., :-1])[random].mean() > 0.7


def test_its_name_says_what_it_is():
    assert NoisyPolicy(FunctionPolicy(own, name="p"), SPACE, 0.25).name == "p, noise 0.25"
    with pytest.raises(PolicyError, match=r"noise is 1\.5"):
        NoisyPolicy(FunctionPolicy(own), SPACE, 1.5)
