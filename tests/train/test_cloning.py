"""Behaviour cloning imitates what is in the data."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.train import clone_policy
from dreamgym.transfer import LatentAgent
from dreamgym.world.world import World
from tests.small_worlds import small_model, world_of


class Follow(gym.Env):
    """Four numbers; whoever recorded acts by a rule on the first two."""

    observation_space = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        return self._observation(), 0.0, False, self.steps == 20, {}

    def _observation(self):
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)


RULES = {
    "box": lambda x: np.float32([2 * x[0], 0.5 + 0.5 * x[1]]),
    "discrete": lambda x: int(x[0] > 0) + int(x[1] > 0),
    "multi-discrete": lambda x: np.array([x[0] > 0, 2 * (x[1] > 0)], np.int64),
}


@pytest.mark.parametrize("action", RULES)
def test_it_acts_as_the_policy_of_the_data(action, tmp_path):
    world = world_of(small_model("mdn-rnn", action))
    rule = RULES[action]
    path = dreamgym.record(
        Follow(world.action_space), steps=1200, out=tmp_path / "d.h5", policy=rule
    )
    before = torch.random.get_rng_state()
    policy = clone_policy(world, path, updates=500)
    assert torch.equal(torch.random.get_rng_state(), before)
    observations = np.random.default_rng(0).uniform(-1, 1, (300, 4)).astype(np.float32)
    actions, _ = policy.predict(observations)
    expected = np.stack([rule(x) for x in observations])
    if action == "box":
        assert np.abs(actions - expected).mean() < 0.1
    else:
        assert (actions == expected).mean() > 0.9
    assert policy.view == "observation"
    assert policy.card.algo == "BC"


def test_the_same_seed_gives_the_same_policy(tmp_path):
    world = world_of(small_model("mdn-rnn", "discrete"))
    path = dreamgym.record(
        Follow(world.action_space), steps=200, out=tmp_path / "d.h5", policy=RULES["discrete"]
    )
    names = [clone_policy(world, path, updates=20, seed=seed).name for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


class InParts(gym.ObservationWrapper):
    """CartPole as a Dict, which a policy sees by the latents of a world."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        part = gym.spaces.Box(-5, 5, (2,), np.float32)
        self.observation_space = gym.spaces.Dict(place=part, angle=part)

    def observation(self, observation):
        clipped = np.clip(observation, -5, 5).astype(np.float32)
        return {"place": clipped[:2], "angle": clipped[2:]}


def lean(observation):
    return int(observation["angle"] @ np.float32([1.0, 0.5]) > 0)


def test_it_sees_latents_where_observations_are_in_parts(tmp_path):
    path = dreamgym.record(InParts(), steps=1500, out=tmp_path / "d.h5", policy=lean)
    world: World = dreamgym.fit(path, config=dreamgym.FitConfig(updates=30))
    policy = clone_policy(world, path, updates=500)
    assert policy.view == "latent"
    agent = LatentAgent(policy, world, deterministic=True)
    cloned = dreamgym.evaluate(agent, InParts, episodes=5).mean
    assert cloned > 2 * dreamgym.evaluate("random", InParts, episodes=5).mean
