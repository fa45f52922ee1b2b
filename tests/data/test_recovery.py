"""Crash safety: what a killed writer leaves, recovery, appending and resuming."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest

from dreamgym._files import partial_path
from dreamgym.data import (
    Dataset,
    DatasetError,
    DatasetWriter,
    Recorder,
    check,
    record,
    recover,
    resume,
)
from dreamgym.data.hdf5.journal import journal_path, read_journal
from tests.data.killing import can_kill, kill_at, survive, write_counting
from tests.data.samples import (
    assert_same_episode,
    random_episode,
    vector_metadata,
    write_random,
)

UNIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def leave_killed(path: Path, episodes: int = 5, tail: int = 0) -> None:
    """Kill a writer that has committed `episodes`, and written `tail` rows without committing."""
    metadata = vector_metadata()
    child = os.fork()
    if child == 0:
        try:
            writer = DatasetWriter(path, metadata)
            rng = np.random.default_rng(0)
            for _ in range(episodes):
                writer.add(
                    random_episode(metadata.observation_space, metadata.action_space, 9, rng)
                )
            if tail:
                writer._file["steps/reward"].resize((10 * episodes + tail,))
                writer._file.flush()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.skipif(not can_kill(), reason="processes cannot be traced here")
@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_writer_killed_at_any_write_call_loses_nothing(tmp_path: Path, step: int) -> None:
    """Every ninth write call from the first to the last; the slow form kills at each of them."""
    path = tmp_path / "whole.h5"
    committed, calls = kill_at(10**9, lambda counter: write_counting(path, counter))
    assert committed == 10
    lost, most = [], 0
    for number, call in enumerate([*range(1, calls, step), calls]):
        committed, found = survive(tmp_path / f"{call}.h5", call, append=number % 4 == 0)
        most = max(most, committed)
        if not committed <= found <= committed + 1:
            lost.append((call, committed, found))
    assert lost == []
    assert most >= 9


@UNIX
def test_recovery_keeps_all_episodes_and_deletes_nothing(tmp_path: Path) -> None:
    leave_killed(tmp_path / "d.h5", tail=4)
    before = (tmp_path / "d.h5.partial").read_bytes()
    with pytest.raises(DatasetError, match=r"d\.h5\.partial.*dreamgym recover"):
        record("CartPole-v1", steps=10, out=tmp_path / "d.h5")
    result = recover(tmp_path / "d.h5")
    assert (result.episodes, result.steps, result.damaged) == (5, 45, [])
    assert result.path == tmp_path / "d.h5"
    assert result.original == tmp_path / "d.h5.killed"
    assert result.original.read_bytes() == before
    assert result.tail_rows == 4
    with h5py.File(result.tail) as file:
        assert file["steps/reward"].shape == (4,)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.h5", "d.h5.killed", "d.h5.tail"]
    assert len(check(result.path).problems) == 0
    with DatasetWriter.extend(result.path) as writer:
        assert writer.num_episodes == 5


class Walk(gym.Env):
    """A random walk of which a Dict is seen; it ends after `length` steps."""

    observation_space = gym.spaces.Dict(
        place=gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
        picture=gym.spaces.Box(0, 255, (4, 4, 3), np.uint8),
    )
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, length: int = 10**9, die_at: int = 10**9) -> None:
        self.length, self.die_at, self.steps = length, die_at, 0

    def _seen(self):
        picture = self.np_random.integers(0, 256, (4, 4, 3), np.uint8)
        return {"place": self.place.copy(), "picture": picture}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.age = self.np_random.normal(size=2), 0
        return self._seen(), {}

    def step(self, action):
        self.steps, self.age = self.steps + 1, self.age + 1
        if self.steps > self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.place += action
        return self._seen(), float(self.place.sum()), False, self.age == self.length, {}


def killed_recording(path: Path, env: gym.Env, *, in_commit: int = 0) -> None:
    """Record with `keep_open` in a child that is killed by the environment, or in a commit."""
    child = os.fork()
    if child == 0:
        try:
            if in_commit:
                counter, commit = itertools.count(1), DatasetWriter.commit

                def die(writer):
                    if next(counter) == in_commit:
                        os.kill(os.getpid(), signal.SIGKILL)
                    commit(writer)

                DatasetWriter.commit = die  # type: ignore[method-assign]
            record(env, steps=100, out=path, keep_open=True, seed=3)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@UNIX
@pytest.mark.parametrize("steps", [1, 4, 17, 20, 24])
def test_every_step_of_the_open_episode_survives_a_kill(tmp_path: Path, steps: int) -> None:
    """Episodes have 20 steps; the process is killed in the step after `steps`."""
    path = tmp_path / "d.h5"
    killed_recording(path, Walk(20, die_at=steps))
    found = recover(path)
    whole = record(Walk(20), steps=steps, out=tmp_path / "whole.h5", seed=3)
    assert (found.steps, found.tail) == (steps, None)
    with Dataset(path) as data, Dataset(whole) as expected:
        assert data.num_episodes == expected.num_episodes
        for index in range(data.num_episodes):
            assert_same_episode(data.episode(index), expected.episode(index))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.h5", "d.h5.killed", "whole.h5"]
    with pytest.raises(DatasetError, match="nothing to recover"):
        recover(path)


@UNIX
def test_an_open_episode_keeps_how_it_ended_and_is_not_taken_twice(tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    killed_recording(path, Walk(6), in_commit=2)
    journal = journal_path(path).read_bytes()
    assert recover(path).episodes == 2
    with Dataset(path) as data:
        assert data.lengths.tolist() == [6, 6]
        assert data.episode(1).truncated
    path.rename(partial_path(path))  # as if killed after the commit, before the journal went on
    (tmp_path / "d.h5.killed").unlink()
    journal_path(path).write_bytes(journal)
    assert recover(path).episodes == 2


def test_a_recording_that_ends_leaves_no_journal_and_one_of_another_dataset_does_not_count(
    tmp_path: Path,
) -> None:
    path = tmp_path / "d.h5"
    with Recorder(Walk(), path, keep_open=True) as env:
        env.reset(seed=0)
        env.step(env.action_space.sample())
        metadata, journal = env.writer.metadata, journal_path(path).read_bytes()
        number, episode = read_journal(path, metadata)
        assert (number, episode.length, episode.complete) == (0, 1, False)
        assert read_journal(path, replace(metadata, created="another time")) is None
        journal_path(path).write_bytes(journal[:-1])  # a row that was cut off
        assert read_journal(path, metadata) is None
    assert [each.name for each in tmp_path.iterdir()] == ["d.h5"]


def test_episodes_that_wait_for_a_commit_and_a_kept_open_one_do_not_go_together(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"keep_open.*commit_every=1"):
        record("CartPole-v1", steps=5, out=tmp_path / "d.h5", keep_open=True, commit_every=2)
    assert not list(tmp_path.iterdir())


def test_a_kept_open_episode_is_not_for_a_writer_that_others_write_to(tmp_path) -> None:
    with Recorder(Walk(), tmp_path / "d.h5") as env:
        with pytest.raises(ValueError, match=r"keep_open with a DatasetWriter.*path of a dataset"):
            Recorder(Walk(), env.writer, keep_open=True)
        env.reset(seed=0)
        env.step(env.action_space.sample())


def test_a_full_disk_refuses_the_next_step_of_an_open_episode(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    env = Recorder(Walk(), tmp_path / "d.h5", keep_open=True)
    env.reset(seed=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        for _ in range(11):  # 78 bytes each
            env.step(env.action_space.sample())
        with pytest.raises(DatasetError, match=r"d\.h5\.open.*open episode cannot be written"):
            env.step(env.action_space.sample())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    env.close()


@UNIX
def test_a_damaged_journal_is_named_and_nothing_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    killed_recording(path, Walk(20, die_at=25))
    content = bytearray(journal_path(path).read_bytes())
    content[-78:-62] = np.full(2, np.nan).tobytes()
    journal_path(path).write_bytes(content)
    with pytest.raises(DatasetError, match=r"d\.h5\.open.*NaN.*move this file away"):
        recover(path)
    journal_path(path).rename(tmp_path / "away")
    assert recover(path).steps == 20


@UNIX
def test_recovery_by_the_partial_file_works_once(tmp_path: Path) -> None:
    leave_killed(tmp_path / "d.h5")
    assert recover(tmp_path / "d.h5.partial").tail is None
    with pytest.raises(DatasetError, match="nothing to recover"):
        recover(tmp_path / "d.h5")


@UNIX
def test_recovery_of_a_partial_file_renamed_by_hand(tmp_path: Path) -> None:
    leave_killed(tmp_path / "d.h5")
    (tmp_path / "d.h5.partial").rename(tmp_path / "mine.h5")
    with pytest.raises(DatasetError, match="dreamgym recover"):
        Dataset(tmp_path / "mine.h5")
    assert recover(tmp_path / "mine.h5").episodes == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.h5", "mine.h5.killed"]


@UNIX
def test_recovery_lists_damaged_episodes(tmp_path: Path) -> None:
    leave_killed(tmp_path / "d.h5")
    partial = tmp_path / "d.h5.partial"
    content = bytearray(partial.read_bytes())
    with h5py.File(partial, "r", swmr=True) as file:
        row = file["steps/obs/observation"][15].tobytes()
    content[content.index(row)] ^= 1
    partial.write_bytes(content)
    result = recover(tmp_path / "d.h5")
    assert (result.episodes, result.damaged) == (4, [1])
    assert result.original.exists()


@UNIX
def test_recovery_without_a_committed_episode(tmp_path: Path) -> None:
    leave_killed(tmp_path / "d.h5", episodes=0)
    result = recover(tmp_path / "d.h5")
    assert (result.path, result.episodes) == (None, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5.killed"]


@UNIX
def test_recovery_refuses_while_the_writer_is_alive(tmp_path: Path) -> None:
    metadata = vector_metadata()
    rng = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "d.h5", metadata) as writer:
        writer.add(random_episode(metadata.observation_space, metadata.action_space, 9, rng))
        code = (
            "import sys; from dreamgym.data import recover, DatasetError\n"
            "try: recover(sys.argv[1])\nexcept DatasetError as error: print(error)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "d.h5")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert "its writer is alive" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]


def test_nothing_to_recover(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing to recover"):
        recover(tmp_path / "d.h5")
    path = write_random(tmp_path / "e.h5", [4, 5])
    with pytest.raises(DatasetError, match="nothing to recover"):
        recover(path)


def test_appending_to_a_closed_file(tmp_path: Path) -> None:
    path = write_random(tmp_path / "d.h5", [4, 5])
    with Dataset(path) as dataset:
        first = dataset.episode(0)
    for _ in range(2):
        with DatasetWriter.extend(path) as writer:
            assert not path.exists()
            writer.add(first)
    with Dataset(path) as dataset:
        assert dataset.lengths.tolist() == [4, 5, 4, 4]
        assert_same_episode(dataset.episode(3), first)
    with DatasetWriter.extend(path):
        pass
    with Dataset(path) as dataset:
        assert dataset.num_episodes == 4


def test_files_that_cannot_be_extended(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        DatasetWriter.extend(tmp_path / "d.h5")
    (tmp_path / "d.h5").write_text("text")
    with pytest.raises(DatasetError, match="not an HDF5 file"):
        DatasetWriter.extend(tmp_path / "d.h5")
    assert (tmp_path / "d.h5").read_text() == "text"


@pytest.mark.parametrize("policy", ["random", "sticky:0.8"])
def test_a_resumed_recording_equals_an_uninterrupted_one(tmp_path: Path, policy: str) -> None:
    whole = record("CartPole-v1", steps=500, out=tmp_path / "a.h5", seed=3, policy=policy)
    parts = record("CartPole-v1", steps=120, out=tmp_path / "b.h5", seed=3, policy=policy)
    seen = []
    for steps in (300, 500, 400):
        resume(
            "CartPole-v1",
            steps=steps,
            out=parts,
            policy=policy,
            progress=lambda *now: seen.append(now),
        )
    with Dataset(whole) as a, Dataset(parts) as b:
        assert b.num_steps == 500
        by_seed = {a.episode(i).seed: a.episode(i) for i in range(len(a))}
        seeds = [b.episode(i).seed for i in range(len(b))]
        assert len(set(seeds)) == len(seeds)
        for episode in map(b.episode, range(len(b))):
            twin = by_seed.get(
                episode.seed
            )  # later seeds, not in `whole`, replace episodes that were cut off
            if twin is not None and twin.complete and episode.complete:
                assert_same_episode(episode, twin)
    assert seen[-1] == (500, 500)


def test_recordings_that_cannot_be_resumed(tmp_path: Path) -> None:
    path = record("CartPole-v1", steps=50, out=tmp_path / "a.h5")
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="spaces"):
        resume("Pendulum-v1", steps=100, out=path)
    with pytest.raises(DatasetError, match=r"policy 'random', not 'sticky:0\.8'"):
        resume("CartPole-v1", steps=100, out=path, policy="sticky-random")
    with pytest.raises(DatasetError, match="no such file"):
        resume("CartPole-v1", steps=100, out=tmp_path / "b.h5")
    with Dataset(path) as dataset:
        assert dataset.num_steps == 50
    assert len(before) == path.stat().st_size
    unseeded = write_random(tmp_path / "c.h5", [3, 4])
    with pytest.raises(DatasetError):
        resume("CartPole-v1", steps=100, out=unseeded)
