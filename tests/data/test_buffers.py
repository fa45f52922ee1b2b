"""Replay buffers of Stable-Baselines3 (objects) and of d3rlpy (files).

`foreign/d3rlpy.h5` was written by `dump` of d3rlpy 2.8.1: episodes of 5, 4 and 6 steps, of which
the second did not terminate.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import Dataset, DatasetError, ForeignOptions, check, convert_buffer
from tests.data.test_formats import FOREIGN, flags, read_both_ways


def test_d3rlpy(tmp_path: Path) -> None:
    path = FOREIGN / "d3rlpy.h5"
    options = {"action_space": spaces.Discrete(3), "repeat_last": True}
    episodes = read_both_ways(path, tmp_path, **options)
    assert flags(episodes) == [
        (5, True, False, True),
        (4, False, True, True),
        (6, True, False, True),
    ]
    for k, episode in enumerate(episodes):
        t = np.arange(episode.length)
        np.testing.assert_array_equal(episode.observations[:-1], np.stack([t, t * 0 + k], axis=1))
        assert episode.rewards.tolist() == t.tolist()
        assert episode.actions.shape == (episode.length,)
    card = check(path, foreign=ForeignOptions(action_space=spaces.Discrete(3)))
    assert any("all 2 terminations are lost" in problem for problem in card.problems)


@pytest.fixture(scope="module")
def learner() -> Any:
    """Return a SAC that has acted in two Pendulums of 40 steps an episode."""
    sb3 = pytest.importorskip("stable_baselines3")

    def make() -> gym.Env:
        return gym.make("Pendulum-v1", max_episode_steps=40)

    env = sb3.common.env_util.make_vec_env(make, n_envs=2, seed=0)
    model = sb3.SAC("MlpPolicy", env, learning_starts=10_000, seed=0, buffer_size=300)
    model.learn(200)
    return model


def test_a_replay_buffer(learner: Any, tmp_path: Path) -> None:
    done = convert_buffer(
        learner.replay_buffer, tmp_path / "d.h5", options=ForeignOptions(env_id="Pendulum-v1")
    )
    with Dataset(done.path) as dataset:
        assert dataset.env_id == "Pendulum-v1"
        assert dataset.num_steps == done.steps == 200
        assert dataset.time_limit == 40
        assert not dataset.terminated.any()
        assert np.abs(dataset.actions(0)).max() > 1  # torques up to 2, stored in [-1, 1]
        for index in range(len(dataset)):
            episode = dataset.episode(index)
            cosine, sine, speed = episode.observations[:-1].T
            torque = episode.actions[:, 0]
            cost = np.arctan2(sine, cosine) ** 2 + 0.1 * speed**2 + 0.001 * torque**2
            np.testing.assert_allclose(episode.rewards, -cost, rtol=1e-3, atol=1e-3)


def test_a_buffer_that_has_wrapped_around_keeps_its_order(learner: Any, tmp_path: Path) -> None:
    learner.learn(300, reset_num_timesteps=False)
    assert learner.replay_buffer.full
    done = convert_buffer(learner.replay_buffer, tmp_path / "d.h5")
    with Dataset(done.path) as dataset:
        assert dataset.num_steps == 300
        for index in range(len(dataset)):
            angle = np.arctan2(*dataset.episode(index).observations.T[[1, 0]])
            turned = np.abs(np.angle(np.exp(1j * np.diff(angle))))
            assert turned.max() < 0.5  # at most 8 rad/s in steps of 0.05 s


def filled(**settings: Any) -> Any:
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    space = spaces.Dict(a=spaces.Box(-9, 9, (2,)), b=spaces.Box(0, 9, (1,)))
    kind = buffers.DictReplayBuffer
    if settings.pop("vector", False):
        space, kind = spaces.Box(-99, 99, (2,)), buffers.ReplayBuffer
    buffer = kind(50, space, spaces.Discrete(3), n_envs=1, **settings)
    for t in range(20):
        row = np.full(2, t, np.float32)
        after = row + 1
        seen, new = (row, after) if kind is buffers.ReplayBuffer else (
            {"a": row / 9, "b": row[:1] / 9}, {"a": after / 9, "b": after[:1] / 9}
        )  # fmt: skip
        timed_out = [{"TimeLimit.truncated": t == 9}]
        buffer.add(seen, new, np.array([t % 3]), np.array([1.0]), np.array([t % 5 == 4]), timed_out)
    return buffer


def test_dict_observations_and_discrete_actions(tmp_path: Path) -> None:
    done = convert_buffer(filled(), tmp_path / "d.h5")
    with Dataset(done.path) as dataset:
        episodes = [dataset.episode(k) for k in range(4)]
        assert flags(episodes) == [
            (5, True, False, True),
            (5, False, True, True),
            (5, True, False, True),
            (5, True, False, True),
        ]
        assert set(episodes[0].observations) == {"a", "b"}
        assert np.concatenate([e.actions for e in episodes]).tolist() == [t % 3 for t in range(20)]


def test_a_buffer_without_time_limits_or_last_observations(tmp_path: Path) -> None:
    buffer = filled(vector=True, optimize_memory_usage=True, handle_timeout_termination=False)
    with pytest.raises(DatasetError, match=r"handle_timeout_termination=False.*terminals="):
        convert_buffer(buffer, tmp_path / "d.h5")
    options = ForeignOptions(terminals="termination")
    done = convert_buffer(buffer, tmp_path / "d.h5", options=options)
    assert any("all 4 terminations are lost" in note for note in done.notes)
    options = ForeignOptions(terminals="termination", repeat_last=True)
    done = convert_buffer(buffer, tmp_path / "e.h5", options=options)
    with Dataset(done.path) as dataset:
        assert dataset.terminated.all()
        assert dataset.lengths.tolist() == [5] * 4


def test_other_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"got list without .*buffer\.dump\(file\)"):
        convert_buffer([1, 2], tmp_path / "d.h5")
    (tmp_path / "buffer.pkl").write_bytes(b"\x80\x04\x95" + bytes(40))
    with pytest.raises(DatasetError, match=r"pickle; .*convert_buffer"):
        check(tmp_path / "buffer.pkl")


@pytest.mark.parametrize("rows", [0, 1])
def test_a_buffer_of_hardly_any_rows(rows: int, tmp_path: Path) -> None:
    buffer = SimpleNamespace(
        **{name: np.zeros((8, 1, 4), np.float32) for name in ("observations", "next_observations")},
        **{name: np.zeros((8, 1)) for name in ("rewards", "dones", "timeouts")},
        actions=np.zeros((8, 1, 1)),
        pos=rows,
        full=False,
        n_envs=1,
        handle_timeout_termination=True,
        observation_space=spaces.Box(-1, 1, (4,)),
        action_space=spaces.Discrete(2),
    )
    if rows:
        assert convert_buffer(buffer, tmp_path / "d.h5").steps == rows
        return
    with pytest.raises(DatasetError, match="the buffer is empty"):
        convert_buffer(buffer, tmp_path / "d.h5")
