from __future__ import annotations

import copy
import json

import gymnasium as gym
import numpy as np
import pytest

import dreamgym
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.train import PolicyFileError, TrainConfig, train_policy
from dreamgym.transfer import LatentObservation, TransferError, evaluate, transfer_policy

QUICK = TrainConfig(num_envs=16, n_steps=32)


@pytest.fixture(scope="module")
def policy(cartpole_world):
    return train_policy(cartpole_world, steps=1024, config=QUICK)


def test_both_returns_and_the_gap(cartpole_world, policy):
    result = transfer_policy(policy, cartpole_world, episodes=12, seed=5)
    figures = json.loads(json.dumps(result.as_dict()))
    assert figures["env_id"] == "CartPole-v1"
    assert figures["view"] == "observation"
    assert figures["episodes"] == 12
    low, high = figures["real_return_interval"]
    assert low <= figures["real_return_mean"] <= high
    assert figures["gap"] == figures["dream_return_mean"] - figures["real_return_mean"]
    low, high = figures["gap_interval"]
    assert low <= figures["gap"] <= high
    real = evaluate(policy, "CartPole-v1", episodes=12, seed=5)
    np.testing.assert_array_equal(result.real.returns, real.returns)


def test_the_dream_runs_one_episode_a_row_with_the_real_limit(cartpole_world, policy):
    """No policy falls within four real steps, but an inaccurate world may end a few dreams."""
    spec = copy.deepcopy(gym.spec("CartPole-v1"))
    spec.max_episode_steps = 4
    result = transfer_policy(policy, cartpole_world, episodes=20, env=spec.to_json())
    assert result.real.lengths.tolist() == [4] * 20
    assert result.dream.lengths.max() == 4
    assert (result.dream.lengths == 4).sum() > 10


def test_dream_returns_are_those_of_first_episodes_from_episode_starts(cartpole_world, policy):
    """Each row counts exactly once, so long episodes count as much as short ones."""
    result = transfer_policy(policy, cartpole_world, episodes=40, seed=9)
    env = DreamVectorEnv(
        cartpole_world, 40, output="numpy", starts="beginnings", max_episode_steps=500
    )
    observation, _ = env.reset(seed=9)
    assert np.abs(observation).max() <= 0.06, "episodes of CartPole start within 0.05"
    first = np.full(40, np.nan)
    for _ in range(500):
        action, _ = policy.predict(observation)
        observation, _, terminated, truncated, info = env.step(action)
        ended = np.isnan(first) & (terminated | truncated)
        first[ended] = info["episode"]["r"][ended]
    np.testing.assert_allclose(result.dream.returns, first, rtol=1e-4)


def test_a_latent_policy_acts_on_filtered_features(cartpole_world):
    config = TrainConfig(num_envs=16, n_steps=32, view="latent")
    policy = train_policy(cartpole_world, steps=512, config=config)
    result = transfer_policy(policy, cartpole_world, episodes=4)
    assert result.view == "latent"
    wrapped = evaluate(
        policy, lambda: LatentObservation(gym.make("CartPole-v1"), cartpole_world), episodes=4
    )
    np.testing.assert_array_equal(result.real.returns, wrapped.returns)
    with pytest.raises(TransferError, match="LatentObservation"):
        evaluate(policy, "CartPole-v1", episodes=1)


def test_a_path_a_callable_and_the_public_name(cartpole_world, policy, tmp_path):
    path = policy.save(tmp_path / "policy.zip")
    from_file = dreamgym.transfer_policy(path, cartpole_world, episodes=4)
    from_memory = transfer_policy(policy, cartpole_world, episodes=4)
    np.testing.assert_array_equal(from_file.real.returns, from_memory.real.returns)
    np.testing.assert_array_equal(from_file.dream.returns, from_memory.dream.returns)
    still = transfer_policy(lambda observation: 0, cartpole_world, episodes=4)
    assert still.real.mean < 12


def test_what_does_not_fit_is_refused(cartpole_world, pendulum_world, policy, tmp_path):
    with pytest.raises(TransferError, match="Pendulum-v1"):
        transfer_policy(policy, pendulum_world, episodes=1)
    with pytest.raises(PolicyFileError, match="no policy"):
        transfer_policy(tmp_path / "none.zip", cartpole_world, episodes=1)
    path = policy.save(tmp_path / "policy.zip")
    with pytest.raises(PolicyFileError, match="trained in"):
        transfer_policy(path, pendulum_world, episodes=1)
    with pytest.raises(TransferError, match="nearest registered id is 'CartPole-v1'"):
        transfer_policy(policy, cartpole_world, episodes=1, env="CartPol-v1")
