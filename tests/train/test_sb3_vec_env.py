from __future__ import annotations

import pickle
import warnings
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor, VecNormalize

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.train import TrainingError
from dreamgym.train.sb3 import SB3VecEnv
from tests.train.conftest import HORIZON


def dream(world, num_envs=16, **options):
    return DreamVectorEnv(world, num_envs, **{"output": "numpy", **options})


def random_actions(env, rng):
    space = env.action_space
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(0, space.n, env.num_envs)
    return rng.uniform(space.low, space.high, (env.num_envs, *space.shape)).astype(np.float32)


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_other_autoreset_modes_are_refused_with_what_to_pass(discrete_world, mode):
    with pytest.raises(TrainingError, match=f'{mode}.*autoreset_mode="SameStep"'):
        SB3VecEnv(dream(discrete_world, autoreset_mode=mode))


def test_a_single_env_is_refused():
    with pytest.raises(TrainingError, match="make_vec"):
        SB3VecEnv(gym.make("CartPole-v1"))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_positive_is_refused(discrete_world, scale):
    with pytest.raises(TrainingError, match="reward_scale"):
        SB3VecEnv(dream(discrete_world), reward_scale=scale)


@pytest.mark.parametrize("name", ["discrete_world", "box_world"])
@pytest.mark.parametrize("view", ["observation", "latent"])
@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_shapes_and_dtypes(request, name, view, output):
    world = request.getfixturevalue(name)
    env = SB3VecEnv(dream(world, view=view, output=output))
    observation = env.reset()
    rng = np.random.default_rng(0)
    for _ in range(15):
        assert isinstance(observation, np.ndarray)
        assert observation.shape == (16, *env.observation_space.shape)
        assert observation.dtype == env.observation_space.dtype
        observation, rewards, dones, infos = env.step(random_actions(env, rng))
        assert rewards.dtype == np.float32
        assert rewards.shape == (16,)
        assert dones.dtype == bool
        assert dones.shape == (16,)
        assert len(infos) == 16


def test_it_returns_what_the_dream_returns(discrete_world):
    """Compare row by row with the vector environment under the same seed and actions."""
    plain, env = dream(discrete_world, 32), SB3VecEnv(dream(discrete_world, 32), reward_scale=0.25)
    env.seed(3)
    observation, _ = plain.reset(seed=3)
    np.testing.assert_array_equal(env.reset(), observation)
    rng, so_far, ends = np.random.default_rng(0), np.zeros(32), {"truncated": 0, "terminated": 0}
    for _ in range(40):
        actions = random_actions(env, rng)
        observation, reward, terminated, truncated, info = plain.step(actions)
        observed, rewards, dones, infos = env.step(actions)
        so_far += reward
        np.testing.assert_array_equal(observed, observation)
        np.testing.assert_allclose(rewards, reward * 0.25, rtol=1e-6)
        np.testing.assert_array_equal(dones, terminated | truncated)
        for row in np.flatnonzero(dones):
            final = infos[row]["terminal_observation"]
            np.testing.assert_array_equal(final, info["final_obs"][row])
            assert infos[row]["TimeLimit.truncated"] == (truncated[row] and not terminated[row])
            assert infos[row]["episode"]["r"] == pytest.approx(so_far[row], rel=1e-4)
            assert infos[row]["episode"]["l"] <= HORIZON
            ends["truncated" if truncated[row] else "terminated"] += 1
            so_far[row] = 0
    assert min(ends.values()) > 0, "the test must see both kinds of end"


def test_rows_that_are_not_done_share_one_read_only_info(discrete_world):
    env = SB3VecEnv(dream(discrete_world))
    env.reset()
    _, _, dones, infos = env.step(np.zeros(16, int))
    quiet = [info for info, done in zip(infos, dones, strict=True) if not done]
    assert len(quiet) > 1
    assert all(info is quiet[0] for info in quiet)
    assert quiet[0] == {}
    for write in (
        lambda info: info.update(a=1),
        lambda info: info.__setitem__("a", 1),
        lambda info: info.setdefault("a", 1),
        lambda info: info.__ior__({"a": 1}),
    ):
        with pytest.raises(TypeError, match="shared"):
            write(quiet[0])
    repickled = pickle.loads(pickle.dumps(quiet[0]))  # noqa: S301
    for copied in (quiet[0].copy(), deepcopy(quiet[0]), repickled):
        copied["a"] = 1
    assert quiet[0] == {}


def test_seed_and_options_wait_for_the_next_reset(discrete_world):
    env = SB3VecEnv(dream(discrete_world))
    env.seed(5)
    first = env.reset()
    env.seed(5)
    observation, *_ = env.step(np.zeros(16, int))
    assert not np.array_equal(observation, first), "seed() alone must not reset"
    np.testing.assert_array_equal(env.reset(), first)
    assert not np.array_equal(env.reset(), first), "a seed is used once"
    before, *_ = env.step(np.zeros(16, int))
    mask = np.zeros(16, bool)
    mask[3] = True
    env.set_options({"reset_mask": mask})
    after = env.reset()
    np.testing.assert_array_equal(after[~mask], before[~mask])
    assert not np.array_equal(after[mask], before[mask])
    assert not np.array_equal(env.reset()[~mask], after[~mask]), "options are used once"
    with pytest.raises(TrainingError, match="one dict"):
        env.set_options([{}] * 16)


def test_attributes_and_methods(discrete_world):
    env = SB3VecEnv(dream(discrete_world))
    assert env.get_attr("render_mode") == [None] * 16
    assert env.get_attr("horizon", [0, 3]) == [HORIZON, HORIZON]
    assert env.has_attr("horizon")
    assert not env.has_attr("no_such_attribute")
    env.set_attr("remark", 7)
    assert env.get_attr("remark", 2) == [7]
    with pytest.raises(TrainingError, match="one environment"):
        env.set_attr("remark", 8, indices=[1])
    assert len(env.env_method("render")) == 16
    with pytest.raises(TrainingError, match="one environment"):
        env.env_method("render", indices=0)
    assert env.env_is_wrapped(Monitor) == [True] * 16
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 16


def test_stepping_without_actions_is_refused(discrete_world):
    env = SB3VecEnv(dream(discrete_world))
    env.reset()
    with pytest.raises(TrainingError, match="step_async"):
        env.step_wait()


def test_close_closes_the_dream(discrete_world):
    inner = dream(discrete_world)
    env = SB3VecEnv(inner)
    env.reset()
    env.close()
    assert inner.closed


@pytest.mark.parametrize("wrapper", [VecCheckNan, VecMonitor, VecNormalize])
def test_sb3_wrappers_take_it(box_world, wrapper):
    env = wrapper(SB3VecEnv(dream(box_world)))
    env.reset()
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(30):
        _, _, dones, infos = env.step(random_actions(env, rng))
        seen += sum("episode" in infos[row] for row in np.flatnonzero(dones))
    assert seen > 16


@pytest.mark.parametrize(
    ("name", "learner", "settings"),
    [
        ("discrete_world", PPO, {"n_steps": 8, "batch_size": 32}),
        ("box_world", PPO, {"n_steps": 8, "batch_size": 32}),
        ("discrete_world", A2C, {}),
        ("box_world", A2C, {}),
        ("discrete_world", DQN, {"learning_starts": 32}),
        ("box_world", SAC, {"learning_starts": 32}),
        ("box_world", TD3, {"learning_starts": 32}),
    ],
)
def test_sb3_learners_train_in_it(request, name, learner, settings):
    env = SB3VecEnv(dream(request.getfixturevalue(name)))
    model = learner("MlpPolicy", env, seed=0, device="cpu", **settings)
    model.learn(320)
    assert model.num_timesteps >= 320
    assert len(model.ep_info_buffer) > 0


def test_replay_buffers_keep_truncation_apart_from_termination(box_world):
    env = SB3VecEnv(dream(box_world))
    model = SAC("MlpPolicy", env, seed=0, device="cpu", learning_starts=10_000)
    model.learn(16 * 40)
    buffer = model.replay_buffer
    done, timeout = buffer.dones[:40].astype(bool), buffer.timeouts[:40].astype(bool)
    assert (done & timeout).any()
    assert (done & ~timeout).any()
    assert not (timeout & ~done).any()


def test_evaluate_policy_finds_returns_in_real_units_without_a_warning(box_world):
    env = SB3VecEnv(dream(box_world, 4), reward_scale=1e-3)
    model = PPO("MlpPolicy", env, seed=0, device="cpu", n_steps=8, batch_size=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, _ = evaluate_policy(model, env, n_eval_episodes=8)
    # rewards of this world are of order one; scaled they would be thousandths
    assert abs(mean) > 0.1
