"""A policy of the latent view that acts on real observations."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.train import TrainConfig
from dreamgym.transfer import LatentAgent

SMALL = TrainConfig(num_envs=8, n_steps=16, batch_size=64, view="latent")


@pytest.fixture(scope="module", params=["cartpole_world", "pendulum_world"])
def trained(request):
    world = request.getfixturevalue(request.param)
    return dreamgym.train_policy(world, steps=128, config=SMALL), world


def test_the_seed_determines_the_recording_which_has_its_name(trained, tmp_path):
    policy, world = trained
    for name in ("a", "b"):
        agent = LatentAgent(policy, world, name="ppo-round-1")
        dreamgym.record(world.env_id, steps=60, out=tmp_path / name, policy=agent, seed=3)
    one, other = (dreamgym.Dataset(tmp_path / name) for name in ("a", "b"))
    assert one.policy == "ppo-round-1"
    for k in range(one.num_episodes):
        np.testing.assert_array_equal(one.episode(k).actions, other.episode(k).actions)
    assert len(np.unique(one.episode(0).actions)) > 1


def test_an_episode_forgets_the_one_before_and_no_global_generator_is_touched(trained):
    policy, world = trained
    agent = LatentAgent(policy, world, name="agent")
    observation = world.observation_space.sample()
    torch.manual_seed(0)
    expected = torch.rand(1).item()
    torch.manual_seed(0)
    state = random.getstate()
    episodes = []
    for _ in range(2):
        agent.reset([0], [5])
        episodes.append([agent.act([observation], [0])[0] for _ in range(20)])
    np.testing.assert_array_equal(episodes[0], episodes[1])
    assert all(world.action_space.contains(action) for action in episodes[0])
    assert torch.rand(1).item() == expected
    assert random.getstate() == state


def test_the_policy_gets_the_features_of_the_filtered_episode(trained, monkeypatch):
    policy, world = trained
    agent, seen, predict = LatentAgent(policy, world), [], policy.network.predict
    monkeypatch.setattr(
        policy.network,
        "predict",
        lambda features, *rest: seen.append(features.copy()) or predict(features, *rest),
    )
    agent.reset([0], [0])
    rng = np.random.default_rng(0)
    observations = [
        rng.normal(size=world.observation_space.shape).astype(np.float32) for _ in "abc"
    ]
    actions = [agent.act([observation], [0])[0] for observation in observations]
    state = world.model.initial(1)
    action = torch.zeros((1, *(world.action_space.shape or ())))
    for k, observation in enumerate(observations):
        with torch.no_grad():
            noise = torch.zeros(1, world.model.noise_dim)  # vector observations need none
            state = world.model.observe(state, action, torch.from_numpy(observation)[None], noise)
            features = world.model.features(state)
        np.testing.assert_allclose(seen[k], features.numpy(), rtol=1e-5, atol=1e-6)
        action = torch.as_tensor(np.asarray(actions[k]))[None]


def test_rows_side_by_side_do_not_depend_on_each_other(trained):
    policy, world = trained
    agent = LatentAgent(policy, world)
    rng = np.random.default_rng(0)
    shape = (10, 2, *world.observation_space.shape)
    observations = rng.normal(size=shape).astype(np.float32)
    agent.reset([0, 1], [3, 4])
    together = [agent.act(observations[t], [0, 1]) for t in range(10)]
    for row in (0, 1):
        agent.reset([row], [3 + row])
        alone = [agent.act([observations[t, row]], [row])[0] for t in range(10)]
        np.testing.assert_array_equal([actions[row] for actions in together], alone)


def test_it_is_evaluated_and_transferred_like_any_policy(trained):
    policy, world = trained
    agent = LatentAgent(policy, world)
    result = dreamgym.transfer_policy(agent, world, episodes=2)
    assert result.view == "observation"
    real = dreamgym.evaluate(agent, world.env_id, episodes=2)
    np.testing.assert_array_equal(result.real.returns, real.returns)


def test_a_policy_of_observations_is_refused(trained):
    _, world = trained
    policy = dreamgym.train_policy(
        world, steps=128, config=TrainConfig(num_envs=8, n_steps=16, view="observation")
    )
    with pytest.raises(ValueError, match="observation view"):
        LatentAgent(policy, world, name="agent")
