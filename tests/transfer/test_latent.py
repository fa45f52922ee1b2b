from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models import Segment, filter_states
from dreamgym.transfer import LatentObservation, TransferError


@pytest.mark.parametrize("name", ["cartpole_world", "pendulum_world"])
def test_it_passes_gymnasiums_checker(request, name):
    world = request.getfixturevalue(name)
    check_env(LatentObservation(world.real_env(), world), skip_render_check=True)


@pytest.mark.parametrize("name", ["cartpole_world", "pendulum_world"])
def test_it_gives_the_features_of_the_filtered_state(request, name):
    """Compare step by step with `filter_states` over the whole episode."""
    world = request.getfixturevalue(name)
    env, plain = LatentObservation(world.real_env(), world), world.real_env()
    env.action_space.seed(0)
    seen, observations, actions = [env.reset(seed=3)[0]], [plain.reset(seed=3)[0]], []
    for _ in range(8):
        action = env.action_space.sample()
        feature, *rest = env.step(action)
        observation, *same = plain.step(action)
        assert rest[:3] == same[:3]
        seen.append(feature)
        observations.append(observation)
        actions.append(action)
    segment = Segment(
        observation=torch.as_tensor(np.stack(observations))[None],
        action=torch.as_tensor(np.stack(actions))[None],
        reward=torch.zeros(1, 8),
        terminated=torch.zeros(1, 8, dtype=torch.bool),
        mask=torch.ones(1, 8, dtype=torch.bool),
    )
    noise = torch.rand((1, 9, world.model.noise_dim))
    with torch.no_grad():
        states = filter_states(world.model, segment, noise)
        for t, feature in enumerate(seen):
            expected = world.model.features({key: leaf[:, t] for key, leaf in states.items()})[0]
            np.testing.assert_allclose(feature, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert feature.dtype == np.float32


def test_an_episode_forgets_the_one_before(cartpole_world):
    env = LatentObservation(cartpole_world.real_env(), cartpole_world)
    first, _ = env.reset(seed=1)
    for _ in range(5):
        env.step(0)
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(first, again)


def test_observations_are_fresh_and_the_global_generator_is_left_alone(cartpole_world):
    env = LatentObservation(cartpole_world.real_env(), cartpole_world)
    torch.manual_seed(0)
    expected = torch.rand(1).item()
    torch.manual_seed(0)
    first, _ = env.reset(seed=1)
    kept = first.copy()
    first[:] = 99.0
    second, *_ = env.step(1)
    second[:] = 99.0
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(again, kept)
    assert torch.rand(1).item() == expected


def test_its_space_is_that_of_the_latent_dream(cartpole_world):
    env = LatentObservation(cartpole_world.real_env(), cartpole_world)
    dream = DreamVectorEnv(
        cartpole_world, 2, view="latent", output="torch", autoreset_mode="SameStep"
    )
    assert env.observation_space == dream.single_observation_space
    assert env.action_space == dream.single_action_space


def test_another_environment_is_refused_with_both_spaces(cartpole_world):
    with pytest.raises(TransferError, match=r"Pendulum-v1.*\(3,\).*CartPole-v1.*\(4,\)"):
        LatentObservation(gym.make("Pendulum-v1"), cartpole_world)
