"""Agents of Stable-Baselines3 act in reality behind the wrappers that they were trained behind."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

from dreamgym.errors import PolicyError, PolicyFileError
from dreamgym.train import load_policy
from dreamgym.transfer import evaluate

WRAPPERS = {
    "normalised": VecNormalize,
    "stacked": lambda env: VecFrameStack(env, 3),
    "normalised and then stacked": lambda env: VecFrameStack(VecNormalize(env), 2),
    "stacked and then normalised": lambda env: VecNormalize(VecFrameStack(env, 2)),
}


def agent_behind(wrap, make="Pendulum-v1"):
    """Return an agent that was trained for a moment, and its environment for evaluation."""
    env = wrap(make_vec_env(make, 4, seed=1))
    agent = PPO("MlpPolicy", env, n_steps=32, batch_size=128, n_epochs=1, seed=0, device="cpu")
    agent.learn(128)
    inner = env
    while hasattr(inner, "venv"):
        if isinstance(inner, VecNormalize):
            inner.training = inner.norm_reward = False
        inner = inner.venv
    return agent, env


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_returns_are_those_of_the_librarys_own_evaluation(wrap):
    agent, env = agent_behind(wrap)
    env.seed(1)
    expected = evaluate_policy(agent, env, 4, return_episode_rewards=True)[0]
    result = evaluate(agent, "Pendulum-v1", episodes=4, seed=1)
    assert sorted(result.returns) == pytest.approx(sorted(expected), abs=1e-4)
    raw = evaluate(agent.predict, "Pendulum-v1", episodes=4, seed=1)
    np.testing.assert_array_equal(raw.returns, result.returns)


class SeesOneRow(gym.Env):
    """Rewards the brightest column of a picture, of any layout, in a Dict or alone."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, in_dict=False):
        box = gym.spaces.Box(0, 255, (40, 44, 3), np.uint8)
        self.in_dict = in_dict
        self.observation_space = gym.spaces.Dict(picture=box) if in_dict else box

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._picture(), {}

    def step(self, action):
        self.steps += 1
        return self._picture(), float(action), False, self.steps == 3, {}

    def _picture(self):
        picture = self.np_random.integers(0, 255, (40, 44, 3), np.uint8)
        return {"picture": picture} if self.in_dict else picture


def test_images_are_transposed_as_the_library_did():
    agent = PPO("CnnPolicy", SeesOneRow(), n_steps=32, seed=0, device="cpu")
    assert isinstance(agent.get_env(), VecTransposeImage)
    assert agent.observation_space.shape == (3, 40, 44)
    expected = evaluate_policy(agent, agent.get_env(), 2)[0]
    assert 0 <= expected <= 3
    assert evaluate(agent, SeesOneRow, episodes=2).lengths.tolist() == [3, 3]


def test_an_observation_is_taken_out_of_its_dict_as_the_library_did():
    env = VecExtractDictObs(DummyVecEnv([lambda: SeesOneRow(in_dict=True)]), "picture")
    agent = PPO("CnnPolicy", env, n_steps=32, seed=0, device="cpu")
    result = evaluate(agent, lambda: SeesOneRow(in_dict=True), episodes=2)
    assert result.lengths.tolist() == [3, 3]


def test_an_agent_without_its_statistics_is_refused(tmp_path):
    agent, env = agent_behind(VecNormalize)
    agent.save(tmp_path / "agent.zip")
    env.save(tmp_path / "statistics.pkl")
    without = PPO.load(tmp_path / "agent.zip", device="cpu")
    with pytest.raises(PolicyError, match=r"trained behind VecNormalize.*VecNormalize\.load"):
        evaluate(without, "Pendulum-v1", episodes=1)
    with pytest.raises(PolicyFileError, match=r"trained behind VecNormalize.*VecNormalize\.load"):
        load_policy(tmp_path / "agent.zip", algo="PPO", env=gym.make("Pendulum-v1"))
    statistics = VecNormalize.load(tmp_path / "statistics.pkl", make_vec_env("Pendulum-v1", 1))
    both = PPO.load(tmp_path / "agent.zip", env=statistics, device="cpu")
    np.testing.assert_array_equal(
        evaluate(both, "Pendulum-v1", episodes=2).returns,
        evaluate(agent, "Pendulum-v1", episodes=2).returns,
    )


def test_an_agent_that_was_trained_without_wrappers_is_not_refused(tmp_path):
    agent, _ = agent_behind(lambda env: env)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", device="cpu")
    policy = load_policy(tmp_path / "agent.zip", algo="PPO", env=gym.make("Pendulum-v1"))
    results = [evaluate(each, "Pendulum-v1", episodes=2) for each in (agent, loaded, policy)]
    for result in results[1:]:
        np.testing.assert_array_equal(result.returns, results[0].returns)


def scaled():
    return gym.wrappers.TransformObservation(
        gym.make("Pendulum-v1"), lambda observation: observation / 10, None
    )


def test_an_environment_without_the_wrappers_of_the_training_is_refused():
    agent, _ = agent_behind(lambda env: env, make=scaled)
    with pytest.raises(PolicyError, match="behind TransformObservation, and Pendulum-v1 is not"):
        evaluate(agent, "Pendulum-v1", episodes=1)
    assert evaluate(agent, scaled, episodes=1).lengths.tolist() == [200]


def test_statistics_of_the_environments_own_are_warned_of():
    def normalised():
        return gym.wrappers.NormalizeObservation(gym.make("Pendulum-v1"))

    agent, _ = agent_behind(lambda env: env, make=normalised)
    with pytest.warns(UserWarning, match="starts with other statistics"):
        evaluate(agent, normalised, episodes=1)


class Unknown(VecEnvWrapper):
    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()


def test_a_wrapper_that_is_not_known_is_warned_of():
    agent, _ = agent_behind(Unknown)
    with pytest.warns(UserWarning, match="behind Unknown, which dreamgym does not know"):
        evaluate(agent, "Pendulum-v1", episodes=1)


@pytest.mark.parametrize(("algorithm", "env"), [(SAC, "Pendulum-v1"), (DQN, "CartPole-v1")])
def test_off_policy_agents_without_wrappers_act(algorithm, env, tmp_path, recwarn):
    """They keep unnormalised observations even where nothing normalises."""
    agent = algorithm("MlpPolicy", env, learning_starts=8, buffer_size=100, seed=0, device="cpu")
    agent.learn(16)
    result = evaluate(agent, env, episodes=2, max_episode_steps=20)
    assert not [w for w in recwarn if "VecNormalize" in str(w.message)]
    agent.save(tmp_path / "agent.zip")
    with pytest.warns(UserWarning, match="trained behind VecNormalize"):
        policy = load_policy(tmp_path / "agent.zip", algo=algorithm.__name__, env=gym.make(env))
    loaded = evaluate(policy, env, episodes=2, max_episode_steps=20)
    np.testing.assert_array_equal(loaded.returns, result.returns)
    again = algorithm.load(tmp_path / "agent.zip", device="cpu")
    with pytest.warns(UserWarning, match="trained behind VecNormalize"):
        evaluate(again, env, episodes=1, max_episode_steps=5)


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (lambda: gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), -1, 1), r"low \(-1\.\)"),
        (lambda: gym.wrappers.FrameStackObservation(gym.make("Pendulum-v1"), 2), r"\(2 3\)"),
    ],
)
def test_a_file_is_refused_in_an_environment_without_its_wrappers(wrap, found, tmp_path):
    agent = PPO("MlpPolicy", DummyVecEnv([wrap]), n_steps=8, batch_size=8, device="cpu")
    agent.save(tmp_path / "agent.zip")
    with pytest.raises(PolicyFileError, match=found):
        load_policy(tmp_path / "agent.zip", algo="PPO", env=gym.make("Pendulum-v1"))
    load_policy(tmp_path / "agent.zip", algo="PPO", env=wrap())
