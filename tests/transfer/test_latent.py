from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dreamgym.data import FrameSkip
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models import Segment, filter_states
from dreamgym.transfer import LatentObservation, LatentVectorObservation, TransferError


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


def vector(world, mode, envs=3):
    made = SyncVectorEnv([world.real_env] * envs, autoreset_mode=mode)
    return LatentVectorObservation(made, world)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_rows_of_the_vector_wrapper_are_those_of_the_single_one(cartpole_world, mode):
    """Over several episodes a row, in every autoreset mode; CartPole's vectors need no noise."""
    envs = vector(cartpole_world, mode)
    singles = [LatentObservation(cartpole_world.real_env(), cartpole_world) for _ in range(3)]
    features, _ = envs.reset(seed=5)
    expected = np.stack([env.reset(seed=5 + k)[0] for k, env in enumerate(singles)])
    envs.action_space.seed(0)
    over, ended = np.zeros(3, bool), 0
    for _ in range(60):
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
        assert features.dtype == np.float32
        assert envs.observation_space.contains(features)
        actions = envs.action_space.sample()
        if mode is AutoresetMode.DISABLED and over.any():
            features, _ = envs.reset(options={"reset_mask": over.copy()})
            for k in np.flatnonzero(over):
                expected[k] = singles[k].reset()[0]
            over[:] = False
            continue
        features, reward, terminated, truncated, info = envs.step(actions)
        ended += int(terminated.sum())
        for k, env in enumerate(singles):
            if mode is AutoresetMode.NEXT_STEP and over[k]:
                expected[k] = env.reset()[0]
                assert reward[k] == 0
                continue
            expected[k], _, gone, *_ = env.step(actions[k])
            assert gone == terminated[k]
            if mode is AutoresetMode.SAME_STEP and gone:
                np.testing.assert_allclose(info["final_obs"][k], expected[k], rtol=1e-5, atol=1e-6)
                expected[k] = env.reset()[0]
        over = terminated | truncated
    assert ended > 3


def test_the_vector_wrapper_refuses_other_environments(cartpole_world, pendulum_world):
    pendulum = SyncVectorEnv([pendulum_world.real_env])
    with pytest.raises(TransferError, match=r"\(3,\).*CartPole-v1.*\(4,\)"):
        LatentVectorObservation(pendulum, cartpole_world)
    skipping = replace(pendulum_world, frame_skip=FrameSkip(steps=2, actions="repeated"))
    with pytest.raises(TransferError, match=r"steps=2, actions=.repeated"):
        LatentVectorObservation(pendulum, skipping)
    pendulum.metadata = {}
    with pytest.raises(TransferError, match="autoreset_mode=None"):
        LatentVectorObservation(pendulum, pendulum_world)
