"""Two rooms: Gymnasium's checks, the wall and its door, what the image shows, and goals."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import dreamgym  # noqa: F401 - registers the environment
from dreamgym.envs import TWO_ROOM
from dreamgym.envs.two_room import REACHED, TwoRoom, picture


def walk(start, action, steps, goal=(-0.9, -0.9)):
    env = TwoRoom()
    env.reset(options={"start": start, "goal": goal})
    for _ in range(steps):
        result = env.step(np.float32(action))
    return result


def test_gymnasium_finds_nothing_to_complain_of():
    check_env(gym.make(TWO_ROOM, render_mode="rgb_array").unwrapped)
    assert gym.spec(TWO_ROOM).max_episode_steps == 100


@pytest.mark.parametrize(
    ("start", "action", "end"),
    [
        ((-0.5, 0.0), (1, 0), (0.0, 0.0)),  # against the wall
        ((-0.5, 0.65), (1, 0), (0.5, 0.65)),  # through the door
        ((0.35, 0.0), (-1, 0.5), (0.05, 0.5)),  # along the wall, which it does not enter
        ((0.5, 0.9), (1, 1), (1.0, 1.0)),  # into a corner
    ],
)
def test_the_wall_is_passed_at_the_door_alone(start, action, end):
    place = walk(start, action, 10)[-1]["place"]
    assert np.abs(place - end).max() < 0.1 + 1e-6
    assert (place[0] > 0) == (end[0] > 0)


def test_the_image_shows_the_dot_between_pixels_and_the_goal_is_such_an_image():
    env = TwoRoom()
    image, info = env.reset(seed=3)
    goal = info["goal_observation"]
    assert env.observation_space.contains(image)
    assert env.observation_space.contains(goal)
    dot = (image != goal).any(-1) & (image[..., 1] < 100) & (image[..., 0] > 100)
    rows, columns = np.nonzero(dot)
    seen = (np.array([columns.mean(), rows.mean()]) + 0.5) / 32 - 1
    np.testing.assert_allclose(seen, info["place"], atol=0.03)
    assert (picture(np.array([0.3, 0.3])) != picture(np.array([0.305, 0.3]))).any()


def test_reaching_the_goal_truncates_and_seeds_fix_both_places():
    goal = (-0.5 + 1.5 * REACHED, 0.0)
    *_, reward, terminated, truncated, info = walk((-0.5, 0.0), (1, 0), 1, goal=goal)
    assert (reward, terminated, truncated, info["is_success"]) == (0.0, False, True, True)
    starts = [TwoRoom().reset(seed=seed) for seed in (7, 7, 8)]
    for key in ("place", "goal_observation"):
        assert (starts[0][1][key] == starts[1][1][key]).all()
        assert (starts[0][1][key] != starts[2][1][key]).any()
    assert TwoRoom().reset(options={"start": goal, "goal": goal})[1]["is_success"]


@pytest.mark.parametrize("place", [(2, 0), "x", (0.1,), (float("nan"), 0)])
def test_a_place_outside_the_rooms_is_refused(place):
    with pytest.raises(ValueError, match=r"goal is .*; expected two numbers from -1 to 1"):
        TwoRoom().reset(options={"goal": place})
