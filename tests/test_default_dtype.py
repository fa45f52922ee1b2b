"""Every stage in a program that has set torch's default dtype to float64, or its default device."""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym._device import float32_by_default
from dreamgym.dream import wrappers
from dreamgym.models import MDNRNNConfig
from dreamgym.models.observations import tensor_dtype
from dreamgym.train import TrainConfig, load_policy
from dreamgym.transfer import LatentAgent
from tests.small_worlds import ONE_EACH, TENSORS, small_world


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    assert torch.get_default_dtype() == torch.float64, "a stage has changed the user's setting"
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("kind", "action"), ONE_EACH)
def test_worlds_of_every_kind_are_loaded_and_dreamt(kind, action, tmp_path):
    with float32_by_default():
        small_world(kind, action).save(tmp_path / "w")
    world = dreamgym.load(tmp_path / "w")
    for leaf in world.model.state_dict().values():
        assert leaf.dtype != torch.float64
    for view in ("observation", "latent"):
        env = dreamgym.DreamVectorEnv(
            world, 3, view=view, output="torch", autoreset_mode="SameStep"
        )
        env.reset(seed=0)
        observation, reward, *_ = env.step(env.action_space.sample())
        seen = tensor_dtype(env.single_observation_space.dtype)
        assert (observation.dtype, reward.dtype) == (seen, torch.float32)


def test_a_world_is_fitted_as_under_float32(tmp_path):
    data = dreamgym.record("CartPole-v1", steps=300, out=tmp_path / "d.h5")
    model = MDNRNNConfig(hidden=8, trunk=8, head=8)
    config = dreamgym.FitConfig(updates=2, batch_size=4, segment_length=8, model=model, starts=8)
    world = dreamgym.fit(data, config=config)
    with float32_by_default():
        expected = dreamgym.fit(data, config=config)
    for name, leaf in world.model.state_dict().items():
        assert torch.equal(leaf, expected.model.state_dict()[name])
    assert world.quality == expected.quality


def test_a_policy_is_trained_saved_loaded_and_transferred(tmp_path):
    world = dreamgym.load("CartPole-MDNRNN-v0")
    for view in ("observation", "latent"):
        config = TrainConfig(num_envs=8, n_steps=8, view=view)
        path = tmp_path / f"{view}.zip"
        dreamgym.train_policy(world, steps=64, out=path, config=config)
        policy = load_policy(path, world=world)
        assert dreamgym.transfer_policy(policy, world, episodes=2).real.episodes == 2
    agent = LatentAgent(policy, world)
    assert dreamgym.evaluate(agent, "CartPole-v1", episodes=2).episodes == 2


@pytest.mark.parametrize("kind", ["mdn-rnn", "rssm", "jepa", "pets"])
def test_another_default_device_does_not_matter(kind, tmp_path):
    """Tensors on "meta" have no data, so that one made there by mistake is an error."""
    if kind != "mdn-rnn":
        with float32_by_default():
            small_world(kind).save(tmp_path / "w")
    torch.set_default_device("meta")
    try:
        data = dreamgym.record("CartPole-v1", steps=200, out=tmp_path / "data.h5")
        config = dreamgym.FitConfig(updates=1, starts=8, batch_size=2, segment_length=4)
        if kind == "mdn-rnn":
            dreamgym.fit(data, tmp_path / "w", config=config)
            settings = TrainConfig(num_envs=4, n_steps=8, device="cpu")
            policy = dreamgym.train_policy(tmp_path / "w", steps=32, config=settings)
            dreamgym.transfer_policy(policy, tmp_path / "w", episodes=2)
        envs = dreamgym.DreamVectorEnv(tmp_path / "w", 4, output="numpy", device="cpu")
        envs.reset(seed=0)
        for _ in range(3):
            observations, *_ = envs.step(envs.action_space.sample())
        assert np.isfinite(observations).all()
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


def test_wrappers_on_tensors_keep_float32():
    env = gym.make_vec("dreamgym/Pendulum-MDNRNN-v0", num_envs=3, device="cpu", **TENSORS)
    wrapped = wrappers.NormalizeReward(wrappers.NormalizeObservation(env), gamma=0.9)
    wrapped.reset(seed=0)
    observation, reward, *_ = wrapped.step(torch.zeros(3, 1, dtype=torch.float32))
    assert observation.dtype == reward.dtype == torch.float32
