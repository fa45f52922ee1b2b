"""CarRacing as small images: its frames, its rewards and its ends are Gymnasium's."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dreamgym.envs import CAR_RACING
from dreamgym.envs.car_racing import FRAME_SKIP

pytest.importorskip("Box2D", reason="CarRacing needs dreamgym[box2d]")


@pytest.fixture
def env():
    made = gym.make(CAR_RACING, render_mode="rgb_array")
    yield made
    made.close()


def test_gymnasium_finds_nothing_wrong(env):
    check_env(env.unwrapped, skip_render_check=True)


def test_a_step_is_four_frames_of_gymnasiums_car(env):
    """Frames that nobody sees are not drawn; nothing else may differ."""
    real = gym.make("CarRacing-v3")
    frame, _ = env.reset(seed=5)
    whole, _ = real.reset(seed=5)
    env.action_space.seed(0)
    for _ in range(10):
        steering, throttle = action = env.action_space.sample()
        found, reward, *ends, _ = env.step(action)
        expected = 0.0
        for _ in range(FRAME_SKIP):
            controls = np.array([steering, max(throttle, 0), max(-throttle, 0)], np.float32)
            whole, part, terminated, truncated, _ = real.step(controls)
            expected += part
        assert reward == pytest.approx(expected)
        assert ends == [terminated, truncated]
        # A pixel is the mean of the area under it: one whole pixel, and halves of its neighbours.
        corner = whole[:2, :2].astype(float) * np.array([[4, 2], [2, 1]])[..., None] / 9
        np.testing.assert_allclose(found[0, 0], corner.sum((0, 1)), atol=1)
        assert not np.array_equal(found, frame)
        frame = found
    assert env.render().shape[-1] == 3
    real.close()


def test_leaving_the_playfield_terminates_with_the_frame_of_that_moment(env):
    env.reset(seed=0)
    car = env.unwrapped._car
    step, calls = car.step, []

    def leave(action):
        calls.append(action)
        frame, reward, _, truncated, info = step(action)
        return frame, reward, len(calls) == 2, truncated, info

    car.step = leave
    frame, _, terminated, truncated, _ = env.step(np.array([0, 1], np.float32))
    assert terminated
    assert not truncated
    assert len(calls) == 2
    assert not np.array_equal(frame, env.reset(seed=0)[0])


def test_an_episode_is_a_thousand_frames_and_the_same_for_a_seed(env):
    assert FRAME_SKIP * gym.spec(CAR_RACING).max_episode_steps == 1000
    first = env.reset(seed=7)[0]
    assert np.array_equal(first, env.reset(seed=7)[0])
    assert not np.array_equal(first, env.reset(seed=8)[0])
