"""Crash safety: what a killed writer leaves, recovery, appending and resuming."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from dreamgym.data import Dataset, DatasetError, DatasetWriter, check, record, recover, resume
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
