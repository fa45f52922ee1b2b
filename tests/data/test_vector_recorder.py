"""Recording several environments at once, in one process and in several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dreamgym.data import (
    Dataset,
    DatasetError,
    Episode,
    ShardPlan,
    UnsupportedSpaceError,
    VectorRecorder,
    record_shards,
    resume_shards,
)
from tests.data.samples import assert_same_episode, dict_cartpole

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


def run_recorder(path: Path, make: Any, mode: AutoresetMode, steps: int) -> None:
    """Record with actions that depend only on environment and episode step, to compare modes."""
    env = VectorRecorder(SyncVectorEnv([make] * 3, autoreset_mode=mode), path, policy="fixed")
    env.reset(seed=[1, 2, 3])
    age = np.zeros(3, dtype=int)
    fresh = np.ones(3, dtype=bool)
    for _ in range(steps):
        actions = action_of(np.arange(3), age)
        _, _, terminated, truncated, _ = env.step(actions)
        done = terminated | truncated
        skipped = ~fresh if mode is AutoresetMode.NEXT_STEP else np.zeros(3, dtype=bool)
        age = np.where(skipped, 0, age + 1)
        if mode is AutoresetMode.NEXT_STEP:
            fresh = ~done
        elif mode is AutoresetMode.SAME_STEP:
            age[done] = 0
        elif done.any():
            age[done] = 0
            env.reset(options={"reset_mask": done})
    env.close()


def action_of(index: np.ndarray, age: np.ndarray) -> np.ndarray:
    return ((age * (index + 2)) // 3) % 2


def by_env(path: Path) -> list[list[Episode]]:
    with Dataset(path) as dataset:
        episodes = [dataset.episode(i) for i in range(len(dataset))]
    return [[e for e in episodes if e.env_index == i] for i in range(3)]


def reference(make: Any, index: int, count: int) -> list[Episode]:
    """Return the same episodes, taken in a single environment."""
    env, episodes = make(), []
    for number in range(count):
        observation, _ = env.reset(seed=index + 1 if number == 0 else None)
        observations, actions, rewards, ended = [observation], [], [], False
        while not ended:
            action = action_of(np.array([index]), np.array([len(actions)]))[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
            ended = terminated or truncated
        stacked: Any = (
            {key: np.stack([o[key] for o in observations]) for key in observation}
            if isinstance(observation, dict)
            else np.stack(observations)
        )
        episodes.append(
            Episode(
                observations=stacked,
                actions=np.array(actions, dtype=np.int64),
                rewards=np.array(rewards, dtype=np.float32),
                terminated=terminated,
                truncated=truncated,
                complete=True,
                seed=index + 1 if number == 0 else None,
                env_index=index,
            )
        )
    return episodes


def short_cartpole() -> gym.Env:
    return gym.make("CartPole-v1", max_episode_steps=12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [short_cartpole, lambda: dict_cartpole(max_episode_steps=12)])
def test_every_mode_gives_the_episodes_of_single_environments(
    tmp_path: Path, mode: AutoresetMode, make: Any
) -> None:
    run_recorder(tmp_path / "d.h5", make, mode, steps=60)
    for index, episodes in enumerate(by_env(tmp_path / "d.h5")):
        complete = [e for e in episodes if e.complete]
        assert len(complete) >= 4
        assert [e.complete for e in episodes[:-1]] == [True] * (len(episodes) - 1)
        for episode, expected in zip(complete, reference(make, index, len(complete)), strict=True):
            assert_same_episode(episode, expected)


@pytest.mark.parametrize("mode", MODES)
def test_truncation_is_not_termination(tmp_path: Path, mode: AutoresetMode) -> None:
    run_recorder(tmp_path / "d.h5", short_cartpole, mode, steps=60)
    episodes = [e for episodes in by_env(tmp_path / "d.h5") for e in episodes if e.complete]
    # Some episodes end by the time limit alone, some fall in the same step.
    assert {(e.terminated, e.truncated) for e in episodes} == {(False, True), (True, True)}
    assert all(e.length == 12 for e in episodes if e.truncated)


def test_an_early_reset_keeps_the_open_episodes(tmp_path: Path) -> None:
    env = VectorRecorder(gym.make_vec("Pendulum-v1", num_envs=2), tmp_path / "d.h5")
    env.reset(seed=7)
    for _ in range(5):
        env.step(env.action_space.sample())
    env.reset()
    for _ in range(3):
        env.step(env.action_space.sample())
    assert env.num_steps == 16
    env.close()
    env.close()
    with Dataset(tmp_path / "d.h5") as dataset:
        assert sorted(dataset.lengths.tolist()) == [3, 3, 5, 5]
        assert {dataset.episode(i).seed for i in range(4)} == {7, 8, None}
        assert not any(dataset.episode(i).complete for i in range(4))
        assert dataset.env_id == "Pendulum-v1"


def test_an_action_outside_its_space_names_the_sub_environment(tmp_path: Path) -> None:
    env = VectorRecorder(gym.make_vec("Pendulum-v1", num_envs=2), tmp_path / "d.h5")
    env.reset(seed=0)
    env.step(np.zeros((2, 1), np.float32))
    with pytest.raises(DatasetError, match=r"row 1: sub-environment 1: .*outside"):
        env.step(np.array([[0.0], [9.0]], np.float32))
    env.close()
    with Dataset(tmp_path / "d.h5") as dataset:
        assert dataset.lengths.tolist() == [1, 1]


def test_unsupported_environments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpaceError, match="Discrete"):
        VectorRecorder(gym.make_vec("FrozenLake-v1", num_envs=2), tmp_path / "d.h5")
    env = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    env.metadata = {**env.metadata, "autoreset_mode": "sometimes"}
    with pytest.raises(DatasetError, match="'sometimes'"):
        VectorRecorder(env, tmp_path / "d.h5")
    assert list(tmp_path.iterdir()) == []


def test_several_processes_make_one_dataset(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    plan = ShardPlan(steps=501, workers=2, policy="sticky:0.5", seed=4)
    for name in ("a", "b"):
        record_shards("Pendulum-v1", tmp_path / name, plan, progress=lambda *now: seen.append(now))
    assert seen[-1] == (501, 501)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "shard-0000.h5",
        "shard-0001.h5",
    ]
    with Dataset(tmp_path / "a") as a, Dataset(tmp_path / "b") as b:
        assert a.num_steps == 501
        assert a.checksum == b.checksum
        episodes = [a.episode(i) for i in range(len(a))]
        assert {e.env_index for e in episodes} == {0, 1}
        assert len({e.seed for e in episodes}) == len(episodes)
    with pytest.raises(DatasetError, match="exists already"):
        record_shards("Pendulum-v1", tmp_path / "a", plan)


def test_shards_can_be_resumed(tmp_path: Path) -> None:
    """The complete episodes are those of a recording that was never interrupted."""
    plan = ShardPlan(steps=150, workers=2, seed=4)
    record_shards("CartPole-v1", tmp_path / "a", plan)
    whole = ShardPlan(steps=400, workers=2, seed=4)
    record_shards("CartPole-v1", tmp_path / "b", whole)
    (tmp_path / "a" / "shard-0001.h5").unlink()  # as if that process had not started yet
    resume_shards("CartPole-v1", tmp_path / "a", ShardPlan(steps=400, workers=2, seed=99))
    with Dataset(tmp_path / "a") as a, Dataset(tmp_path / "b") as b:
        assert a.num_steps == 400
        from_a, from_b = (
            {e.seed: e.observations for e in map(d.episode, range(len(d))) if e.complete}
            for d in (a, b)
        )
        seeds = [a.episode(i).seed for i in range(len(a))]
        assert len(set(seeds)) == len(seeds)
        common = from_a.keys() & from_b.keys()
        assert len(common) >= len(from_b) - 2
        for seed in common:
            np.testing.assert_array_equal(from_a[seed], from_b[seed])
    with pytest.raises(DatasetError, match="as many processes"):
        resume_shards("CartPole-v1", tmp_path / "a", ShardPlan(steps=500, workers=1))
    with pytest.raises(DatasetError, match="recorded with the policy 'random'"):
        resume_shards("CartPole-v1", tmp_path / "a", replace(whole, steps=500, policy="sticky:0.5"))
    (tmp_path / "a" / "shard-0000.h5").rename(tmp_path / "a" / "shard-0000.h5.partial")
    with pytest.raises(DatasetError, match="dreamgym recover"):
        resume_shards("CartPole-v1", tmp_path / "a", whole)


def act_wrongly(observation: Any) -> Any:
    return np.array([99.0], np.float32)


def test_the_error_of_a_failed_process_is_reported(tmp_path: Path) -> None:
    plan = ShardPlan(steps=10, workers=1, policy=act_wrongly)
    with pytest.raises(DatasetError, match=r"worker 0 failed: DatasetError: .*outside"):
        record_shards("Pendulum-v1", tmp_path / "a", plan)
    with pytest.raises(DatasetError, match="no environment"):
        record_shards("Pendulum-v9", tmp_path / "b", plan)
    assert not (tmp_path / "b").exists()
    with pytest.raises(ValueError, match="3 steps with 4 workers"):
        record_shards("Pendulum-v1", tmp_path / "b", ShardPlan(steps=3, workers=4))


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_interrupting_several_processes_keeps_what_they_have(tmp_path: Path) -> None:
    code = """
if __name__ == "__main__":
    from dreamgym.data import ShardPlan, record_shards
    plan = ShardPlan(steps=10**9, workers=2)
    record_shards("CartPole-v1", "d", plan, progress=lambda done, _: print(done, flush=True))
"""
    (tmp_path / "script.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while int(process.stdout.readline()) < 2000:
        pass
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert not list((tmp_path / "d").glob("*.partial"))
    with Dataset(tmp_path / "d") as dataset:
        assert dataset.num_steps >= 2000


class ColumnRewards(gym.vector.VectorWrapper):
    """Rewards of shape (N, 1), as batched simulators give."""

    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = self.env.step(actions)
        return observations, rewards[:, None], *rest


def test_rewards_may_be_a_column(tmp_path: Path) -> None:
    for name, wrap in (("a", ColumnRewards), ("b", lambda env: env)):
        vector = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
        env = VectorRecorder(wrap(vector), tmp_path / name)
        env.reset(seed=0)
        for _ in range(30):
            env.step(np.zeros(2, int))
        env.close()
    with Dataset(tmp_path / "a") as a, Dataset(tmp_path / "b") as b:
        assert a.checksum == b.checksum
