"""The F1 of rewards against the horizon, of models that know when rewards come, or do not."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.data import Dataset
from dreamgym.metrics import reward_events
from dreamgym.models import Prediction, WorldModel

LENGTH = 30


def reward_of(count):
    """Usually 0.5; a win or a loss now and then."""
    return 0.5 + 2.0 * (count % 5 == 0) - 2.0 * (count % 7 == 3)


class Clock(gym.Env):
    """A counter that begins anywhere and brings a reward at certain numbers."""

    observation_space = gym.spaces.Box(0, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.age = int(self.np_random.integers(1000)), 0
        return np.float32([self.count]), {}

    def step(self, action):
        self.count, self.age = self.count + 1, self.age + 1
        return np.float32([self.count]), reward_of(self.count), False, self.age == LENGTH, {}


class Foresees(WorldModel):
    """The clock's own dynamics with rewards by a function of the count."""

    feature_dim = noise_dim = 1

    def __init__(self, predict):
        super().__init__(Clock.observation_space, Clock.action_space, None)
        self.predict = predict
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def initial(self, batch_size):
        return {"count": torch.zeros(batch_size, 1)}

    def observe(self, state, action, observation, noise):
        return {"count": observation}

    def step(self, state, action, noise, temperature=1.0):
        count = state["count"] + 1
        zeros = torch.zeros(len(count))
        return {"count": count}, Prediction(self.predict(count[:, 0]).float(), zeros, zeros)

    def features(self, state):
        return state["count"]

    def loss(self, segment, noise):
        raise NotImplementedError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = dreamgym.record(Clock(), steps=3000, out=tmp_path_factory.mktemp("clock") / "data.h5")
    with Dataset(path) as dataset:
        yield dataset


def events(predict, dataset, **settings):
    return reward_events(
        Foresees(predict), dataset, np.arange(dataset.num_episodes)[:40], **settings
    )


def test_a_model_that_knows_when_rewards_come_has_an_f1_of_one_at_every_horizon(dataset):
    found = events(reward_of, dataset)
    assert found.horizons.tolist() == list(range(1, 16))
    assert (found.happened == found.hits).all()
    assert (found.f1 == 1).all()
    share = found.happened.sum() / found.windows.sum()
    assert share == pytest.approx(1 / 5 + 1 / 7 - 2 / 35, abs=0.03)


def test_windows_count_as_long_as_their_episode_continues(dataset):
    found = events(reward_of, dataset, horizons=(1, 10, 26, 27))
    assert found.horizons.tolist() == [1, 10, 26]  # four steps of the thirty are filtered
    assert (np.diff(found.windows) < 0).all()
    assert found.windows[-1] <= 40


def test_without_episodes_there_is_no_horizon(dataset):
    nothing = np.array([], np.int64)
    assert reward_events(Foresees(reward_of), dataset, nothing).f1.shape == (0,)


def test_events_at_another_step_or_of_the_other_sign_are_no_hits(dataset):
    late = events(lambda count: reward_of(count - 1), dataset)
    assert (late.f1 < 0.4).all()
    turned = events(lambda count: 1.0 - reward_of(count), dataset)
    assert (turned.expected == turned.happened).all()
    assert (turned.hits == 0).all()
    # Half of a win's distance from the usual reward decides.
    faint = events(lambda count: 0.5 + 0.4 * (reward_of(count) - 0.5), dataset)
    assert (faint.expected == 0).all()
    assert (faint.f1 == 0).all()


def test_without_events_there_is_no_f1(dataset, tmp_path):
    class Quiet(Clock):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, 0.5, *rest

    path = dreamgym.record(Quiet(), steps=500, out=tmp_path / "quiet.h5")
    with Dataset(path) as quiet:
        found = events(lambda count: torch.full_like(count, 0.5), quiet)
    assert np.isnan(found.f1).all()
