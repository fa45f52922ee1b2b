"""Which episodes of a dataset a world was not fitted to."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

import dreamgym
from dreamgym.data import Dataset, FrameSkip, MixedDataset
from dreamgym.errors import WorldError
from dreamgym.world.held_out import open_for


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return dreamgym.record("CartPole-v1", steps=600, out=folder / "d.h5", seed=3)


@pytest.fixture(scope="module")
def world(path):
    config = dreamgym.FitConfig(updates=5, held_out=0.3)
    return dreamgym.fit(path, seed=4, config=config)


def test_of_the_data_of_the_fit_they_are_those_of_the_fit(path, world):
    with Dataset(path) as dataset:
        training, held_out = dataset.split(0.3, 4)
    with open_for(world, path) as opened:
        assert opened.is_fitted_data
        np.testing.assert_array_equal(opened.training, training)
        np.testing.assert_array_equal(opened.held_out, held_out)


def test_all_of_other_data_is_held_out(world, tmp_path):
    other = dreamgym.record("CartPole-v1", steps=100, out=tmp_path / "d.h5", seed=9)
    with Dataset(other) as dataset, open_for(world, dataset) as opened:
        assert not opened.is_fitted_data
        assert len(opened.held_out) == dataset.num_episodes


def test_data_is_read_with_the_frame_skip_of_the_world(world, tmp_path):
    path = dreamgym.record("CartPole-v1", steps=200, out=tmp_path / "d.h5", policy="held:2")
    skip = FrameSkip(steps=2, actions="repeated")
    with open_for(replace(world, frame_skip=skip), path) as opened:
        assert opened.dataset.frame_skip == skip


@pytest.mark.parametrize("opened_before", [False, True])
def test_each_part_of_a_mixture_is_read_with_the_frame_skip_of_the_world(
    world, tmp_path, opened_before
):
    path = dreamgym.record("CartPole-v1", steps=200, out=tmp_path / "d.h5", policy="held:2")
    skip = FrameSkip(steps=2, actions="repeated")
    skipping = replace(world, frame_skip=skip)
    with Dataset(path) as dataset, open_for(skipping, dataset) as alone:
        source = [(path, 1.0), (path, 2.0)]
        if opened_before:
            source = MixedDataset([(dataset, 1.0), (dataset, 2.0)])
        with open_for(skipping, source) as opened:
            assert opened.dataset.frame_skip == skip
            assert opened.dataset.num_steps == 2 * alone.dataset.num_steps


def test_data_of_another_environment_is_refused(world, tmp_path):
    other = dreamgym.record("Pendulum-v1", steps=400, out=tmp_path / "d.h5")
    with (
        pytest.raises(WorldError, match=r"\(3,\).*\(4,\).*data of the environment"),
        open_for(world, other),
    ):
        pass


class Two(gym.Env):
    """A Dict of two parts, of which a world may know one."""

    observation_space = gym.spaces.Dict(
        a=gym.spaces.Box(-1, 1, (2,), np.float32), b=gym.spaces.Box(-1, 1, (3,), np.float32)
    )
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 0.0, self.steps == 10, False, {}


def test_only_the_keys_of_the_world_are_read(tmp_path):
    path = dreamgym.record(Two(), steps=60, out=tmp_path / "d.h5")
    with Dataset(path, keys=["b"]) as dataset:
        world = dreamgym.fit(dataset, config=dreamgym.FitConfig(updates=2))
    for source in (path, [(path, 1.0)]):
        with open_for(world, source) as opened:
            assert list(opened.dataset.observation_space.spaces) == ["b"]
    with open_for(world, path) as opened:
        assert opened.is_fitted_data


class Beyond(Two):
    """Observations beyond the bounds of their space, as sensors give them."""

    observation_space = gym.spaces.Box(-0.1, 0.1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.steps = 0
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        seen = self.np_random.normal(size=2).astype(np.float32)
        return seen, 0.0, self.steps == 10, False, {}


def test_a_world_of_data_beyond_its_bounds_takes_its_own_data(tmp_path):
    with pytest.warns(UserWarning, match="bounds"):
        path = dreamgym.record(Beyond(), steps=60, out=tmp_path / "d.h5")
    world = dreamgym.fit(path, config=dreamgym.FitConfig(updates=2))
    with open_for(world, path) as opened:
        assert opened.is_fitted_data
