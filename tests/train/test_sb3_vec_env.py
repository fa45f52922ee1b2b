from __future__ import annotations

import pickle
import warnings
from copy import deepcopy
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor, VecNormalize

import dreamgym
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.train import TrainingError
from dreamgym.train.sb3 import SB3VecEnv
from tests.train.conftest import HORIZON


def dream(world, num_envs=16, **options):
    return DreamVectorEnv(world, num_envs, **{"autoreset_mode": "SameStep", **options})


def random_actions(env, rng):
    space = env.action_space
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(0, space.n, env.num_envs)
    return rng.uniform(space.low, space.high, (env.num_envs, *space.shape)).astype(np.float32)


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_a_dream_in_another_autoreset_mode_is_recreated_and_a_wrapped_one_refused(
    discrete_world, mode
):
    made = dream(discrete_world, autoreset_mode=mode)
    adapted = SB3VecEnv(made)
    assert adapted.env.autoreset_mode is AutoresetMode.SAME_STEP
    assert adapted.env.world is made.world
    with pytest.raises(TrainingError, match=f"autoreset_mode='SameStep'.*{mode}"):
        SB3VecEnv(gym.wrappers.vector.RecordEpisodeStatistics(made))


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


class Reach(gym.Env):
    """A point that is to reach a goal; the reward is minus the distance."""

    observation_space = gym.spaces.Dict(
        {
            name: gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
            for name in ("observation", "achieved_goal", "desired_goal")
        }
    )
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def compute_reward(self, achieved, desired, info):
        return -np.abs(achieved - desired).sum(-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 1))
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.place = self.place + 0.1 * np.float64(action)
        self.steps += 1
        reward = float(self.compute_reward(self.place, self.goal, {}))
        return self._observation(), reward, False, self.steps == 10, {}

    def _observation(self):
        return {
            "observation": self.place.copy(),
            "achieved_goal": self.place.copy(),
            "desired_goal": self.goal.copy(),
        }


@pytest.fixture(scope="module")
def reach_world(tmp_path_factory):
    path = tmp_path_factory.mktemp("reach") / "reach.h5"
    dreamgym.record(Reach(), steps=300, out=path)
    return dreamgym.fit(path, config=dreamgym.FitConfig(updates=2))


def hindsight_agent(env):
    return SAC(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        learning_starts=60,
        buffer_size=500,
        batch_size=16,
        seed=0,
    )


def test_hindsight_replay_computes_rewards_with_the_given_function(reach_world):
    calls = []

    def compute_reward(achieved, desired, infos):
        calls.append(len(achieved))
        return Reach.compute_reward(None, achieved, desired, infos)

    env = SB3VecEnv(dream(reach_world, 4), reward_scale=0.5, compute_reward=compute_reward)
    hindsight_agent(env).learn(80)
    assert calls
    achieved, desired = np.ones((3, 1)), np.zeros((3, 1))
    (rewards,) = env.env_method("compute_reward", achieved, desired, [{}] * 3, indices=[0])
    np.testing.assert_array_equal(rewards, [-0.5] * 3)


def test_hindsight_replay_takes_the_reward_of_the_registered_environment(reach_world):
    gym.register("TestReach-v0", entry_point=f"{__name__}:Reach", max_episode_steps=10)
    try:
        spec = gym.make("TestReach-v0").spec.to_json()
        env = SB3VecEnv(dream(replace(reach_world, env_spec=spec), 4))
        result = env.env_method("compute_reward", np.ones((2, 1)), np.zeros((2, 1)), [{}] * 2)
        np.testing.assert_array_equal(result, [[-1.0, -1.0]] * 4)
    finally:
        del gym.registry["TestReach-v0"]


def test_hindsight_replay_without_a_reward_is_refused_with_what_to_pass(reach_world):
    with pytest.raises(TrainingError, match=r"compute_reward.*SB3VecEnv\(env, compute_reward="):
        hindsight_agent(SB3VecEnv(dream(reach_world, 4))).learn(80)


def test_all_actions_are_allowed_without_masks_and_a_warning_says_so(discrete_world, box_world):
    env = SB3VecEnv(dream(discrete_world, 4))
    env.reset()
    assert env.has_attr("action_masks")
    with pytest.warns(UserWarning, match="no action masks.*action_masks=function"):
        masks = env.env_method("action_masks")
    np.testing.assert_array_equal(masks, np.ones((4, env.action_space.n), bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.env_method("action_masks")
    assert not SB3VecEnv(dream(box_world, 4)).has_attr("action_masks")


def test_action_masks_are_those_of_the_current_observations(discrete_world):
    def only_the_first(observations):
        assert observations.shape == (4, 4)
        seen.append(observations)
        return np.eye(3, dtype=bool)[np.zeros(len(observations), int)]

    seen: list[np.ndarray] = []
    env = SB3VecEnv(dream(discrete_world, 4), action_masks=only_the_first)
    first = env.reset()
    np.testing.assert_array_equal(np.stack(env.env_method("action_masks")), [[1, 0, 0]] * 4)
    second = env.step(np.zeros(4, int))[0]
    env.env_method("action_masks")
    np.testing.assert_array_equal(seen, [first, second])
    wrong = SB3VecEnv(dream(discrete_world, 4), action_masks=lambda observations: np.ones(3))
    wrong.reset()
    with pytest.raises(TrainingError, match=r"shape \(3,\); expected \(4, 3\)"):
        wrong.env_method("action_masks")
