from __future__ import annotations

import copy
import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import WorldError
from dreamgym.models import GoalReward
from dreamgym.train import PolicyFileError, TrainConfig, train_policy
from dreamgym.transfer import (
    Evaluation,
    LatentObservation,
    TransferError,
    evaluate,
    transfer_policy,
)
from dreamgym.transfer.transfer import _dream_limits

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
        cartpole_world,
        40,
        output="numpy",
        episode_statistics=True,
        starts="episode_starts",
        max_episode_steps=500,
        autoreset_mode="SameStep",
    )
    observation, _ = env.reset(seed=9)
    assert np.abs(observation).max() <= 0.06, "episodes of CartPole start within 0.05"
    first = np.full(40, np.nan)
    for _ in range(500):
        action, _ = policy.predict(observation)
        observation, _, terminated, truncated, info = env.step(action)
        ended = np.isnan(first) & (terminated | truncated)
        if ended.any():
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


class CutsItself(gym.Env):
    """One point a step; the environment truncates itself after a drawn number of steps."""

    observation_space = gym.spaces.Box(-5, 5, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, shortest=30, longest=30):
        self.shortest, self.longest = shortest, longest

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.cut = int(self.np_random.integers(self.shortest, self.longest + 1))
        self.place = self.np_random.uniform(-0.1, 0.1, 2)
        return self.place.astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        self.place = 0.9 * self.place + 0.1 * float(action[0])
        return self.place.astype(np.float32), 1.0, False, self.steps >= self.cut, {}


@pytest.fixture(scope="module")
def cut_world(tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "cut.h5"
    dreamgym.record(CutsItself(), steps=900, out=path)
    return dreamgym.fit(path, config=dreamgym.FitConfig(updates=100))


def test_the_data_shows_the_limit_of_an_environment_that_truncates_itself(cut_world):
    assert cut_world.env_spec is None
    assert cut_world.provenance["dataset_time_limit"] == 30
    assert cut_world.real_limit == 30
    assert cut_world.horizon <= 30


def test_a_dream_is_truncated_where_the_real_environment_truncates_itself(cut_world):
    result = transfer_policy("random", cut_world, env=CutsItself, episodes=10)
    assert set(result.real.lengths) == set(result.dream.lengths) == {30}
    assert abs(result.gap) < 3
    figures = result.as_dict()
    assert figures["step_limit"] == 30
    assert "time limit in the data" in figures["step_limit_reason"]


def test_real_episodes_count_more_than_any_limit_that_was_named(cut_world):
    result = transfer_policy(
        "random", cut_world, env=lambda: CutsItself(20, 20), episodes=10, max_episode_steps=25
    )
    assert result.dream.lengths.tolist() == [20] * 10
    assert "real episodes were truncated after 20 steps" in result.step_limit_reason


def test_where_truncations_vary_each_dream_has_the_steps_of_one_real_episode(cut_world):
    result = transfer_policy("random", cut_world, env=lambda: CutsItself(5, 25), episodes=12)
    assert len(set(result.real.lengths)) > 3
    np.testing.assert_array_equal(result.dream.lengths, result.real.lengths)
    assert result.dream.truncated.all()
    assert "each dream" in result.step_limit_reason


def test_without_any_limit_a_dream_is_no_longer_than_the_longest_real_episode():
    limits, reason = _dream_limits(
        Evaluation(returns=np.ones(3), lengths=np.array([4, 9, 6]), seconds=0.0), None
    )
    assert limits.tolist() == [9, 9, 9]
    assert "longest real episode has 9 steps" in reason


def test_an_environment_that_is_not_registered_names_what_to_pass(cartpole_world):
    spec = json.loads(gym.spec("CartPole-v1").to_json())
    spec["id"] = "OfMyOwnModule-v0"
    world = replace(cartpole_world, env_spec=json.dumps(spec))
    with pytest.raises(
        WorldError, match=r"OfMyOwnModule-v0.*import the module.*--env MODULE:OfMyOwnModule-v0"
    ):
        transfer_policy("random", world, episodes=1)


def test_baselines_stand_beside_the_policy_in_the_same_episodes(cartpole_world, policy, tmp_path):
    data = dreamgym.record("CartPole-v1", steps=2000, out=tmp_path / "d.h5", policy=lean, seed=1)
    done = []
    result = transfer_policy(
        policy,
        cartpole_world,
        episodes=10,
        data=data,
        progress=lambda *given: done.append(given),
    )
    assert done == [(k, 30) for k in range(1, 31)]
    assert list(result.baselines) == ["random", "behaviour cloning"]
    expected = evaluate("random", "CartPole-v1", episodes=10)
    np.testing.assert_array_equal(result.baselines["random"].returns, expected.returns)
    assert result.baselines["behaviour cloning"].mean > 3 * expected.mean
    figures = json.loads(json.dumps(result.as_dict()))
    figure = figures["baselines"]["random"]
    assert figure["gain"] == pytest.approx(result.real.mean - expected.mean)
    low, high = figure["gain_interval"]
    assert low <= figure["gain"] <= high
    without = transfer_policy(policy, cartpole_world, episodes=2, baselines=False)
    assert without.baselines == {}


def lean(observation):
    """Push to where the pole falls: balances for a while."""
    return int(observation[2] + 0.5 * observation[3] + 0.1 * observation[1] > 0)


def test_episodes_that_begin_at_the_goal_of_a_goal_world_are_marked(pendulum_world):
    hanging = np.float32([-1, 0, 0])
    model = GoalReward(pendulum_world.model, hanging, leaves=("z",), threshold=1.5)
    world = pendulum_world.with_model(model)
    result = transfer_policy("random", world, episodes=16, baselines=False)
    env, near = world.real_env(), []
    for seed in range(10_000, 10_016):
        observation, _ = env.reset(seed=seed)
        encoded = model.encode_goals(torch.from_numpy(observation)[None])
        near.append(bool((encoded - model.goal).norm() <= 1.5))
    assert result.real.at_goal.tolist() == near
    assert 0 < sum(near) < 16
    assert result.as_dict()["real"]["episodes_at_goal"] == sum(near)
