"""The loop in plain Python: record, fit, train, record with the trained policy, fit again."""

from __future__ import annotations

import numpy as np
import pytest

import dreamgym
from dreamgym.data import Dataset, PredictPolicy, ShardPlan, record_shards
from dreamgym.train import TrainConfig
from dreamgym.transfer import LatentAgent

QUICK = dreamgym.FitConfig(updates=5)


@pytest.fixture(scope="module")
def observing(cartpole_world):
    config = TrainConfig(num_envs=8, n_steps=16, view="observation")
    return dreamgym.train_policy(cartpole_world, steps=128, config=config)


@pytest.fixture(scope="module")
def latent(cartpole_world):
    config = TrainConfig(num_envs=8, n_steps=16, view="latent")
    return dreamgym.train_policy(cartpole_world, steps=128, config=config)


@pytest.mark.parametrize("view", ["observation", "latent"])
def test_a_trained_policy_records_for_the_next_fit(
    request, view, cartpole_world, observing, latent, tmp_path
):
    policy = observing if view == "observation" else LatentAgent(latent, cartpole_world)
    path = dreamgym.record("CartPole-v1", steps=200, out=tmp_path / "round-2.h5", policy=policy)
    with Dataset(path) as dataset:
        trained = observing if view == "observation" else latent
        assert dataset.policy == f"{trained.name} sampled"
    world = dreamgym.fit(path, config=QUICK)
    config = TrainConfig(num_envs=8, n_steps=16, view=view)
    assert dreamgym.train_policy(world, steps=128, config=config).card.steps == 128


def test_sampled_recordings_follow_from_the_seed(observing, tmp_path):
    episodes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = dreamgym.record(
            "CartPole-v1", steps=80, out=tmp_path / name, policy=observing, seed=seed
        )
        with Dataset(path) as dataset:
            episodes.append(dataset.episode(0).actions.tolist())
    assert episodes[0] == episodes[1] != episodes[2]


def test_the_most_likely_actions_are_recorded_on_request(observing, tmp_path):
    policy = PredictPolicy(observing, deterministic=True)
    path = dreamgym.record("CartPole-v1", steps=80, out=tmp_path / "d.h5", policy=policy)
    with Dataset(path) as dataset:
        episode = dataset.episode(0)
    expected, _ = observing.predict(episode.observations[:-1], deterministic=True)
    np.testing.assert_array_equal(episode.actions, expected)


def test_processes_record_with_a_trained_policy(cartpole_world, latent, tmp_path):
    import torch.multiprocessing  # noqa: F401 - it refuses tensors with a graph

    policy = LatentAgent(latent, cartpole_world)
    plan = ShardPlan(steps=60, policy=policy, workers=2)
    with Dataset(record_shards("CartPole-v1", tmp_path / "shards", plan)) as dataset:
        assert dataset.num_steps == 60


def test_a_latent_policy_without_its_world_is_refused_with_what_to_do(latent, tmp_path):
    with pytest.raises(dreamgym.PolicyError, match="LatentAgent"):
        dreamgym.record("CartPole-v1", steps=10, out=tmp_path / "d.h5", policy=latent)
    assert not list(tmp_path.iterdir())


def test_worlds_are_given_as_a_value_or_a_folder(cartpole_world, observing, tmp_path):
    path = cartpole_world.save(tmp_path / "world")
    for world in (path, str(path)):
        result = dreamgym.transfer_policy(observing, world, episodes=2)
        assert result.env_id == "CartPole-v1"
    config = TrainConfig(num_envs=8, n_steps=16)
    assert dreamgym.train_policy(str(path), steps=128, config=config).card.steps == 128
    with pytest.raises(dreamgym.WorldError, match="no world 'nowhere'"):
        dreamgym.transfer_policy(observing, "nowhere", episodes=2)
    with pytest.raises(TypeError, match="expected a World"):
        dreamgym.transfer_policy(observing, cartpole_world.model, episodes=2)


def test_random_policies_are_transferred_by_name(cartpole_world):
    result = dreamgym.transfer_policy("random", cartpole_world, episodes=3)
    assert result.real.mean < 60
