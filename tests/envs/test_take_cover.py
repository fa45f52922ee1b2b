"""Take Cover: images and tics, its death and its time limit."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dreamgym.envs import TAKE_COVER

pytest.importorskip("vizdoom", reason="Take Cover needs dreamgym[doom]")


@pytest.fixture
def env():
    made = gym.make(TAKE_COVER, render_mode="rgb_array")
    yield made
    made.close()


def test_gymnasium_finds_nothing_wrong(env):
    check_env(env.unwrapped, skip_render_check=True)


def test_a_caller_may_write_into_what_it_is_given(env):
    frame, _ = env.reset(seed=3)
    frame[:] = 0
    env.render()[:] = 0
    assert env.render().any()


def play(env: gym.Env, seed: int) -> tuple[list[np.ndarray], list[float], bool, bool]:
    """Play an episode without moving; return frames, rewards, terminated and truncated."""
    frames, rewards = [env.reset(seed=seed)[0]], []
    while True:
        frame, reward, terminated, truncated, _ = env.step(0)
        frames.append(frame)
        rewards.append(float(reward))
        if terminated or truncated:
            return frames, rewards, terminated, truncated


def test_a_game_gives_images_and_tics_and_repeats_its_last_frame_at_death(env):
    frames, rewards, terminated, truncated = play(env, seed=3)
    assert terminated
    assert not truncated
    assert env.observation_space.contains(frames[-1])
    assert np.array_equal(frames[-1], frames[-2])
    assert np.array_equal(frames[-1], env.render())
    assert frames[-1].any()
    assert set(rewards[:-1]) == {4.0}
    assert 0 < rewards[-1] <= 4
    again = play(env, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(frames, again[0], strict=True))
    assert not np.array_equal(frames[20], play(env, seed=4)[0][20])


def test_a_pixel_is_the_mean_of_the_screen_under_it(env):
    screen = np.zeros((192, 256, 3), np.uint8)
    screen[3:6, 4:8, 1] = 90
    screen[3, 4, 1] = 102
    image = env.unwrapped._resized({"screen": screen})
    assert image.sum() == image[1, 1, 1] == 91
    assert image.shape == env.observation_space.shape


def test_survival_to_the_time_limit_is_truncated_and_not_terminated():
    env = gym.make(TAKE_COVER, max_episode_steps=5)
    _, rewards, terminated, truncated = play(env, seed=0)
    env.close()
    assert len(rewards) == 5
    assert truncated
    assert not terminated
    assert 4 * gym.spec(TAKE_COVER).max_episode_steps == 2100
