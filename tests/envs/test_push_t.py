"""Pushing a T: Gymnasium's checks, what the image shows, goals that play reaches, and recording."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import dreamgym
from dreamgym.data import Dataset
from dreamgym.envs import PUSH_T
from dreamgym.envs.push_t import HELD, PLAY, PUSHED, REACHED, TABLE, Play, PushT, _is_within

pytest.importorskip("gym_pusht", reason="needs dreamgym[pusht]", exc_type=ImportError)


def distances(pose, goal):
    turn = (pose[4] - goal[4] + np.pi) % (2 * np.pi) - np.pi
    return np.linalg.norm(pose[2:4] - goal[2:4]), abs(turn)


def test_gymnasium_finds_nothing_wrong():
    check_env(gym.make(PUSH_T, render_mode="rgb_array").unwrapped)
    assert gym.spec(PUSH_T).max_episode_steps == 100


def test_the_image_shows_finger_and_block_where_the_pose_says():
    image, info = PushT().reset(seed=2)
    assert PushT().observation_space.contains(image)
    blue = image[..., 2].astype(int) - image[..., 0]
    for mask, place in ((blue > 100, info["pose"][:2]), ((blue > 10) & (blue < 60), None)):
        rows, columns = np.nonzero(mask)
        seen = (np.array([columns.mean(), rows.mean()]) + 0.5) * TABLE / 64
        # the T's body is not at the middle of its area
        expected, within = (place, 8) if place is not None else (info["pose"][2:4], 50)
        assert np.linalg.norm(seen - expected) < within


def test_play_leads_from_every_start_to_its_goal():
    """The goal is where 25 steps of play end, and asks for a push."""
    env = PushT()
    for seed in range(3):
        _, info = env.reset(seed=seed)
        assert not info["is_success"]
        moved, turned = distances(info["pose"], env._goal)
        assert moved >= PUSHED[0] or turned >= PUSHED[1]
        assert ((env._goal[:2] > 0) & (env._goal[:2] < TABLE)).all()


def test_reaching_the_goal_truncates():
    env = PushT()
    env.reset(seed=0)
    env._goal = env.pose
    *_, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    assert (reward, terminated, truncated, info["is_success"]) == (0.0, False, True, True)


def test_a_pose_is_within_a_goal_on_both_counts_and_across_a_full_turn():
    goal = np.array([100.0, 100, 200, 200, np.pi - 0.01])
    assert _is_within(goal + np.array([10, 0, 0, 10, 0.05]), goal, REACHED)
    assert _is_within(goal * np.array([1, 1, 1, 1, -1]), goal, REACHED)
    assert not _is_within(goal + np.array([15, 0, 0, 15, 0]), goal, REACHED)
    assert not _is_within(goal + np.array([0, 0, 0, 0, 0.4]), goal, REACHED)


def test_the_same_seed_gives_the_same_episode():
    found = []
    for seed in (5, 5, 6):
        env = PushT()
        image, info = env.reset(seed=seed)
        after = [env.step(np.float32([0.5, -0.5]))[0] for _ in range(3)]
        found.append(np.stack([image, info["goal_observation"], *after]))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_play_records_held_actions_that_push(tmp_path):
    with gym.make(PUSH_T) as env:
        path = dreamgym.record(
            env, steps=4 * PLAY, out=tmp_path / "d.h5", policy=Play(env.unwrapped)
        )
    with Dataset(path) as data:
        actions = np.asarray(data.episode(0).actions)
        images = np.asarray(data.episode(0).observations).astype(int)
        assert data.policy == "play"
    whole = actions[: len(actions) // HELD * HELD].reshape(-1, HELD, 2)
    assert (whole == whole[:, :1]).all()
    assert np.abs(actions).max() <= 1
    block = (images[..., 0] > 80) & (images[..., 0] < 200)
    assert (block[0] != block[-1]).sum() > 10


@pytest.mark.parametrize("action", [[0.0], 0.5, [np.nan, 0.0]])
def test_an_action_of_another_shape_or_without_a_value_is_refused(action):
    env = PushT()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected two numbers from -1 to 1"):
        env.step(np.array(action, np.float32))
