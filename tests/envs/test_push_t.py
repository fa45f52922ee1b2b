"""Pushing a T: Gymnasium's checks, what the image shows, goals that play reaches, and recording."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import dreamgym
from dreamgym.data import Dataset
from dreamgym.envs import PUSH_T
from dreamgym.envs.push_t import (
    GOAL_TOLERANCE,
    HOLD_STEPS,
    MIN_PUSH,
    PLAY_STEPS,
    TABLE,
    Play,
    PushT,
    _is_within,
)

pytest.importorskip("gym_pusht", reason="needs dreamgym[pusht]", exc_type=ImportError)


def distances(pose, goal):
    turn = (pose[4] - goal[4] + np.pi) % (2 * np.pi) - np.pi
    return np.linalg.norm(pose[2:4] - goal[2:4]), abs(turn)


def test_gymnasium_finds_nothing_wrong():
    check_env(gym.make(PUSH_T, render_mode="rgb_array").unwrapped)
    assert gym.spec(PUSH_T).max_episode_steps == 100


def seen(image):
    """Return where an image shows the finger and the T, in pixels of the table."""
    blue = image[..., 2].astype(int) - image[..., 0]
    places = []
    for mask in (blue > 100, (blue > 10) & (blue < 60)):
        rows, columns = np.nonzero(mask)
        places.append((np.array([columns.mean(), rows.mean()]) + 0.5) * TABLE / image.shape[0])
    return places


def check_seen(image, pose):
    finger, block = seen(image)
    assert np.linalg.norm(finger - pose[:2]) < 8
    # the T's origin is on the edge of its bar, 45 pixels from the middle of its area
    assert np.linalg.norm(block - pose[2:4]) < 60


def test_the_images_show_finger_and_block_where_the_pose_and_the_goal_are():
    env = PushT()
    for seed in range(3):
        image, info = env.reset(seed=seed)
        assert env.observation_space.contains(image)
        check_seen(image, info["pose"])
        check_seen(info["goal_observation"], env._goal)


def test_a_goal_asks_for_a_push():
    env = PushT()
    for seed in range(3):
        _, info = env.reset(seed=seed)
        assert not info["is_success"]
        moved, turned = distances(info["pose"], env._goal)
        assert moved >= MIN_PUSH[0] or turned >= MIN_PUSH[1]


def test_a_step_and_a_pose_need_an_episode():
    env = PushT()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.float32))
    with pytest.raises(gym.error.ResetNeeded):
        _ = env.pose


def test_reaching_the_goal_truncates():
    env = PushT()
    env.reset(seed=0)
    env._goal = env.pose
    *_, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    assert (reward, terminated, truncated, info["is_success"]) == (0.0, False, True, True)


def test_a_pose_is_within_a_goal_on_both_counts_and_across_a_full_turn():
    goal = np.array([100.0, 100, 200, 200, np.pi - 0.01])
    assert _is_within(goal + np.array([10, 0, 0, 10, 0.05]), goal, GOAL_TOLERANCE)
    assert _is_within(goal * np.array([1, 1, 1, 1, -1]), goal, GOAL_TOLERANCE)
    assert not _is_within(goal + np.array([15, 0, 0, 15, 0]), goal, GOAL_TOLERANCE)
    assert not _is_within(goal + np.array([0, 0, 0, 0, 0.4]), goal, GOAL_TOLERANCE)


def test_the_same_seed_gives_the_same_episode():
    env, found = PushT(), []
    for seed in (5, 5, 6, None):
        image, info = env.reset(seed=seed)
        after = [env.step(np.float32([0.5, -0.5]))[0] for _ in range(3)]
        found.append(np.stack([image, info["goal_observation"], *after]))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert not np.array_equal(found[2], found[3])


def test_play_records_held_actions_that_push(tmp_path):
    with gym.make(PUSH_T) as env:
        path = dreamgym.record(
            env, steps=4 * PLAY_STEPS, out=tmp_path / "d.h5", policy=Play(env.unwrapped)
        )
    with Dataset(path) as data:
        actions = np.asarray(data.episode(0).actions)
        images = np.asarray(data.episode(0).observations).astype(int)
        assert data.policy == "play"
    whole = actions[: len(actions) // HOLD_STEPS * HOLD_STEPS].reshape(-1, HOLD_STEPS, 2)
    assert (whole == whole[:, :1]).all()
    assert np.abs(actions).max() <= 1
    assert np.linalg.norm(seen(images[0])[1] - seen(images[-1])[1]) > 10


@pytest.mark.parametrize("action", [[0.0], 0.5, [np.nan, 0.0]])
def test_an_action_of_another_shape_or_without_a_value_is_refused(action):
    env = PushT()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected two numbers from -1 to 1"):
        env.step(np.array(action, np.float32))
