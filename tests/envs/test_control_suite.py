"""Tasks of the Control Suite as small images: frames, rewards and ends are the suite's."""

from __future__ import annotations

import os

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dreamgym.envs import SWINGUP

os.environ.setdefault("MUJOCO_GL", "egl")
mujoco = pytest.importorskip("mujoco", reason="needs dreamgym[dmc]")
suite = pytest.importorskip("dm_control.suite", reason="needs dreamgym[dmc]", exc_type=ImportError)


@pytest.fixture(scope="module", autouse=True)
def _skip_without_opengl():
    try:
        suite.load("cartpole", "swingup").physics.render(8, 8)
    except Exception as error:  # whatever a machine without OpenGL raises
        pytest.skip(f"nothing draws here: {error}")


def make_env(**settings):
    made = gym.make(SWINGUP, render_mode="rgb_array", **settings)
    made.reset(seed=0)
    return made


@pytest.fixture
def env():
    made = make_env()
    yield made
    made.close()


def test_gymnasium_finds_nothing_wrong(env):
    check_env(env.unwrapped, skip_render_check=True)


def test_an_action_is_held_and_its_rewards_are_added(env):
    published = suite.load("cartpole", "swingup", task_kwargs={"random": 3})
    published.reset()
    frame, _ = env.reset(seed=3)
    assert np.array_equal(frame, published.physics.render(64, 64, camera_id=0))
    env.action_space.seed(0)
    for _ in range(3):
        action, before = env.action_space.sample(), frame
        frame, reward, *ends, _ = env.step(action)
        assert reward == pytest.approx(sum(published.step(action).reward for _ in range(8)))
        assert ends == [False, False]
        assert np.array_equal(frame, published.physics.render(64, 64, camera_id=0))
        assert not np.array_equal(frame, before)


def test_a_task_truncates_after_a_thousand_of_its_steps():
    env = make_env(frame_skip=300)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]
    env.close()
    env = gym.make(SWINGUP, frame_skip=4, max_episode_steps=250)
    assert env.spec.max_episode_steps * env.unwrapped.frame_skip == 1000


def test_the_time_limit_is_that_of_the_task(env):
    assert 8 * env.spec.max_episode_steps == 1000


def test_another_task_has_its_own_spaces():
    env = make_env(domain="reacher", task="easy")
    assert env.action_space.shape == (2,)
    assert env.render().shape == (256, 256, 3)
    assert env.metadata["render_fps"] == pytest.approx(1 / (8 * 0.02))
    env.close()


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r"no cartpole fly with images; it has .*cartpole swing"):
        gym.make(SWINGUP, task="fly")
    with pytest.raises(ValueError, match="frame_skip=0"):
        gym.make(SWINGUP, frame_skip=0)


@pytest.mark.parametrize("action", [[0.0, 1.0], 0.5, [np.nan]])
def test_an_action_of_another_shape_or_without_a_value_is_refused(env, action):
    with pytest.raises(ValueError, match="expected finite numbers of Box"):
        env.unwrapped.step(np.array(action, np.float32))


def test_a_machine_without_opengl_is_told_what_to_set(env, monkeypatch):
    def no_context(*_, **__):
        raise mujoco.FatalError("an OpenGL platform library has not been loaded")

    monkeypatch.setattr(type(env.unwrapped._env.physics), "render", no_context)
    with pytest.raises(RuntimeError, match="MUJOCO_GL to egl"):
        env.reset()


def test_a_closed_environment_says_so():
    env = make_env().unwrapped
    env.close()
    for use in (env.reset, env.render, lambda: env.step(np.zeros(1, np.float32))):
        with pytest.raises(gym.error.ClosedEnvironmentError):
            use()
