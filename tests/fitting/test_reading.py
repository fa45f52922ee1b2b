"""Data that a fit reads: from memory or a file, some keys, several datasets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym import FitConfig
from dreamgym.data import Dataset, DatasetError
from dreamgym.models import MDNRNNConfig
from tests.data.samples import dict_cartpole

QUICK = FitConfig(
    updates=20,
    batch_size=16,
    segment_length=8,
    evaluate_every=10,
    starts=32,
    model=MDNRNNConfig(hidden=16, trunk=16, head=16),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "cartpole.h5"
    return dreamgym.record("CartPole-v1", steps=800, out=out, seed=0)


def weights(world: dreamgym.World) -> torch.Tensor:
    return torch.cat([leaf.flatten() for leaf in world.model.state_dict().values()])


def test_reading_from_memory_or_a_file_makes_no_difference(data: Path) -> None:
    """Prefetched from the file by a thread, or drawn from memory: the world is the same."""
    with Dataset(data, memory=0) as streamed:
        assert not streamed.in_memory
        from_file = dreamgym.fit(streamed, config=QUICK)
    assert torch.equal(weights(from_file), weights(dreamgym.fit(data, config=QUICK)))


def test_a_bad_episode_in_the_file_fails_the_fit(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    path.write_bytes(data.read_bytes())
    with h5py.File(path, "r+") as file:
        file["steps/obs/observation"][100, 0] += 1
    with (
        Dataset(path, memory=0) as dataset,
        pytest.raises(DatasetError, match="its checksum does not fit"),
    ):
        dreamgym.fit(dataset, config=replace(QUICK, updates=1))


def test_some_observation_keys(tmp_path: Path) -> None:
    path = dreamgym.record(dict_cartpole(), steps=300, out=tmp_path / "d.h5")
    with Dataset(path, keys=["angle", "a/b %."]) as dataset:
        world = dreamgym.fit(dataset, config=replace(QUICK, updates=2))
    assert set(world.observation_space.spaces) == {"angle", "a/b %."}
    assert world.provenance["fit"]["keys"] == ["a/b %.", "angle"]


class Parts(gym.Env):
    """CartPole whose observation comes in two parts."""

    def __init__(self) -> None:
        self.inner = gym.make("CartPole-v1").unwrapped
        box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = gym.spaces.Dict(cart=box, pole=box)
        self.action_space = self.inner.action_space

    def reset(self, *, seed=None, options=None):
        observation, info = self.inner.reset(seed=seed)
        return {"cart": observation[:2], "pole": observation[2:]}, info

    def step(self, action):
        observation, *rest = self.inner.step(action)
        return {"cart": observation[:2], "pole": observation[2:]}, *rest


def test_the_real_environment_of_a_world_has_the_same_observation_keys(tmp_path: Path) -> None:
    gym.register("Parts-v0", f"{__name__}:Parts", max_episode_steps=50)
    try:
        path = dreamgym.record("Parts-v0", steps=300, out=tmp_path / "d.h5")
        with Dataset(path, keys=["pole"]) as dataset:
            world = dreamgym.fit(dataset, config=replace(QUICK, updates=2))
        with world.real_env() as env:
            assert env.observation_space == world.observation_space
            assert set(env.reset(seed=0)[0]) == {"pole"}
        evaluation = dreamgym.evaluate(
            lambda seen: int(seen["pole"][0] > 0), world.real_env, episodes=3
        )
        assert evaluation.mean > 10
        # The same holds if the caller names the environment.
        given = dreamgym.transfer_policy(
            lambda seen: int(seen["pole"][0] > 0), world, episodes=3, env="Parts-v0"
        )
        assert given.real.returns.tolist() == evaluation.returns.tolist()
    finally:
        del gym.registry["Parts-v0"]


def test_several_datasets_with_weights(data: Path, tmp_path: Path) -> None:
    other = dreamgym.record("CartPole-v1", steps=400, out=tmp_path / "b.h5", seed=9)
    one, two = (dreamgym.fit([(data, 1.0), (other, weight)], config=QUICK) for weight in (1.0, 5.0))
    assert not torch.equal(weights(one), weights(two))
    assert two.provenance["fit"]["weights"] == [1.0, 5.0]
    assert two.provenance["dataset_steps"] == 1200
    assert two.env_id == "CartPole-v1"
    assert np.isfinite(two.quality["reward_rmse"])
