"""CarRacing as small images: its frames, its rewards and its ends are Gymnasium's."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dreamgym.envs import CAR_RACING
from dreamgym.envs.car_racing import FRAME_SKIP, SIDE

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
    # A pixel is the mean of the area under it: a whole one, and half of the next.
    weights = np.kron(np.eye(SIDE // 2), np.array([[2, 1, 0], [0, 1, 2]]) / 3)
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
        mean = np.einsum("ih,hwc,jw->ijc", weights, whole, weights)
        np.testing.assert_allclose(found, mean, atol=0.51)
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


@pytest.mark.parametrize("action", [[0.0, 1.0, 0.0], 0.5, [np.nan, 0.0]])
def test_an_action_of_another_shape_or_without_a_value_is_refused(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected two numbers from -1 to 1, the steering and"):
        env.unwrapped.step(np.array(action, np.float32))


def test_the_time_limit_truncates_after_a_thousand_frames(env):
    env.reset(seed=0)
    frame = np.zeros((96, 96, 3), np.uint8)
    env.unwrapped._car.step = lambda action: (frame, -0.1, False, False, {})
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(1000 // FRAME_SKIP)]
    assert ends == [(False, False)] * (len(ends) - 1) + [(False, True)]


def test_the_same_seed_gives_the_same_track(env):
    first = env.reset(seed=7)[0]
    assert np.array_equal(first, env.reset(seed=7)[0])
    assert not np.array_equal(first, env.reset(seed=8)[0])
