"""Start states are filtered from real rows only; a model that records its inputs proves it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.data import Dataset
from dreamgym.models import Prediction, WorldModel
from dreamgym.world import start_states
from dreamgym.world.start_states import StartStates, burn_in

LENGTHS = (1, 2, 3, 7, 30)
LENGTH = 6
COUNT = 200


class Counted(gym.Env):
    """Observes its episode number and step; episodes terminate and are truncated alternately."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(100)

    def __init__(self) -> None:
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.age = self.episode + 1, 0
        return self._seen(), {}

    def step(self, action):
        self.age += 1
        over = self.age >= LENGTHS[self.episode % len(LENGTHS)]
        return self._seen(), 0.0, over and self.episode % 2 == 0, over and self.episode % 2 == 1, {}

    def _seen(self):
        return np.array([self.episode, self.age], np.float32)


class Witness(WorldModel):
    """Records the last observation and action, their number, and whether they were consecutive."""

    feature_dim, noise_dim = 2, 1

    def __init__(self) -> None:
        super().__init__(Counted.observation_space, Counted.action_space, None)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def initial(self, batch_size):
        zeros = torch.zeros(batch_size)
        last = torch.zeros(batch_size, 2)
        return {"last": last, "count": zeros, "consecutive": zeros + 1, "action": zeros}

    def observe(self, state, action, observation, noise):
        follows = (observation - state["last"] == torch.tensor([0.0, 1.0])).all(-1)
        first = state["count"] == 0
        return {
            "last": observation,
            "count": state["count"] + 1,
            "consecutive": state["consecutive"] * torch.where(first, action == 0, follows),
            "action": action.float(),
        }

    def step(self, state, action, noise, temperature=1.0):
        zeros = torch.zeros(len(action))
        return state, Prediction(zeros, zeros, zeros)

    def features(self, state):
        return state["last"]

    def loss(self, segment, noise):
        raise NotImplementedError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("counted") / "counted.h5"
    with Dataset(dreamgym.record(Counted(), steps=430, out=path, seed=0)) as dataset:
        yield dataset


@pytest.mark.parametrize("length", [LENGTH, 1])
def test_a_start_state_is_filtered_from_the_rows_before_it_and_nothing_else(dataset, length):
    chosen = np.arange(0, dataset.num_episodes, 3)
    starts = burn_in(Witness().eval(), dataset, chosen, count=COUNT, length=length)
    episode, step = starts.states["last"].long().unbind(-1)
    assert bool((starts.states["consecutive"] == 1).all())
    assert {*episode.tolist()} <= {*chosen.tolist()}
    # One observation more than there are steps before it: no padding and no later rows.
    assert torch.equal(starts.states["count"].long(), step.clamp(max=length) + 1)
    actions = [int(dataset.episode(e).actions[s - 1]) if s else 0 for e, s in zip(episode, step)]  # noqa: B905
    assert starts.states["action"].tolist() == actions
    assert bool((step[: starts.num_episode_starts] == 0).all())
    assert int(step.max()) > length


def test_large_observations_give_fewer_start_states(dataset, monkeypatch):
    every = np.arange(dataset.num_episodes)
    monkeypatch.setattr(start_states, "START_BYTES", 100 * 8 * (LENGTH + 2) // 2)
    for count, expected in ((80, 80), (2000, 100)):
        starts = burn_in(Witness().eval(), dataset, every, count=count, length=LENGTH)
        assert starts.size == expected
    monkeypatch.setattr(start_states, "START_BYTES", 1)
    starts = burn_in(Witness().eval(), dataset, every, count=2000, length=LENGTH)
    assert starts.size == start_states.MIN_STARTS


def test_the_last_row_of_an_episode_is_never_a_start_state(dataset):
    every = np.arange(dataset.num_episodes)
    starts = burn_in(Witness().eval(), dataset, every, count=2000, length=LENGTH)
    episode, step = starts.states["last"].long().unbind(-1)
    left = torch.as_tensor(np.asarray(dataset.lengths))[episode] - step
    assert int(left.min()) == 1  # the row before the last is a valid start
    assert {dataset.episode(int(e)).terminated for e in {*episode.tolist()}} == {True, False}


def test_start_states_from_anywhere_are_uniform_over_rows_with_an_action(dataset):
    every = np.arange(dataset.num_episodes)
    starts = burn_in(Witness().eval(), dataset, every, count=8000, length=1)
    episode, step = starts.states["last"][starts.num_episode_starts :].long().unbind(-1)
    rows = torch.as_tensor(np.concatenate([[0], np.cumsum(dataset.lengths)[:-1]]))[episode] + step
    counts = torch.bincount(rows, minlength=int(np.sum(dataset.lengths)))
    # Chi-square per degree of freedom: 1 +- 0.07 for uniform draws.
    statistic = (
        (counts - counts.float().mean()).square().sum() / counts.float().mean() / len(counts)
    )
    assert 0.7 < float(statistic) < 1.35


@pytest.mark.parametrize("seed", [0, 1])
def test_start_states_are_determined_by_the_seed(dataset, seed):
    every = np.arange(dataset.num_episodes)
    one, two = (burn_in(Witness().eval(), dataset, every, count=64, seed=s) for s in (seed, 5))
    again = burn_in(Witness().eval(), dataset, every, count=64, seed=seed)
    assert torch.equal(one.states["last"], again.states["last"])
    assert not torch.equal(one.states["last"], two.states["last"])


def test_states_in_another_layout_are_laid_out_as_after_loading():
    images = torch.arange(4.0 * 3 * 2 * 2).view(4, 2, 2, 3).permute(0, 3, 1, 2)
    starts = StartStates(states={"image": images}, num_episode_starts=1)
    assert starts.states["image"].is_contiguous()
    assert torch.equal(starts.states["image"], images)
