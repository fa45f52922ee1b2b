"""Writing native datasets: round trips, refused episodes, kills and full disks."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamgym.data import Dataset, DatasetError, DatasetMetadata, DatasetWriter, Episode
from tests.data.samples import (
    assert_same_episode,
    random_episode,
    vector_metadata,
    write,
    write_random,
)

SPACES = [
    (spaces.Box(-1, 1, (3,)), spaces.Discrete(3, start=-1)),
    (spaces.Box(-1, 1, (), np.float64), spaces.Box(-2, 2, (2,))),
    (spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.MultiDiscrete([3, 2])),
    (
        spaces.Dict({"z": spaces.Box(0, 255, (4, 4), np.uint8), "a/b": spaces.Box(-1, 1, (2,))}),
        spaces.Box(-1, 1, (2, 2), np.float64),
    ),
    (spaces.Dict({".": spaces.Box(0, 1), "..": spaces.Box(0, 1)}), spaces.Discrete(2)),
]


@pytest.mark.parametrize("pair", SPACES, ids=str)
def test_episodes_come_back_bit_for_bit(tmp_path: Path, pair: tuple) -> None:
    metadata = DatasetMetadata(observation_space=pair[0], action_space=pair[1])
    rng = np.random.default_rng(0)
    episodes = [
        random_episode(*pair, 5, rng, seed=3, env_index=2),
        random_episode(*pair, 1, rng, terminated=False, truncated=True),
        random_episode(*pair, 40, rng, terminated=False, complete=False),
        random_episode(*pair, 2, rng, truncated=True, seed=0),
    ]
    with Dataset(write(tmp_path / "d.h5", episodes, metadata)) as dataset:
        assert dataset.num_episodes == 4
        assert dataset.num_steps == 48
        assert dataset.lengths.tolist() == [5, 1, 40, 2]
        for index, episode in enumerate(episodes):
            assert_same_episode(dataset.episode(index), episode)
        assert dataset.observation_space == pair[0]
        assert dataset.action_space == pair[1]


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(0, 2**63 - 1))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lengths_and_seeds(tmp_path: Path, lengths: list[int], seed: int) -> None:
    path = tmp_path / "d.h5"
    path.unlink(missing_ok=True)
    metadata = vector_metadata(seed=seed)
    rng = np.random.default_rng(0)
    episodes = [
        random_episode(metadata.observation_space, metadata.action_space, n, rng, seed=seed)
        for n in lengths
    ]
    with Dataset(write(path, episodes, metadata)) as dataset:
        assert dataset.lengths.tolist() == lengths
        assert dataset.metadata.seed == seed
        assert_same_episode(dataset.episode(-1), episodes[-1])


def test_the_file_has_the_documented_layout(tmp_path: Path) -> None:
    with h5py.File(write_random(tmp_path / "d.h5", [3, 2])) as file:
        assert file.attrs["format"] == b"dreamgym"
        assert file.attrs["schema_version"] == 1
        assert file["steps/obs/observation"].shape == (7, 3)
        assert file["episodes/start"][:].tolist() == [0, 4]
        assert file["steps/action"][3] == 0
        assert file["steps/reward"][6] == 0.0


def test_committed_episodes_can_be_read_before_the_file_is_closed(tmp_path: Path) -> None:
    metadata = vector_metadata()
    writer = DatasetWriter(tmp_path / "d.h5", metadata)
    rng = np.random.default_rng(0)
    for count in range(1, 4):
        writer.add(random_episode(metadata.observation_space, metadata.action_space, 9, rng))
        with Dataset.snapshot(tmp_path / "d.h5") as dataset:
            assert dataset.num_episodes == count
    assert not (tmp_path / "d.h5").exists()
    with pytest.raises(DatasetError, match="still being written"):
        Dataset(tmp_path / "d.h5")
    with pytest.raises(DatasetError, match=r"a writer has it open.*wait"):
        Dataset(tmp_path / "d.h5.partial")
    writer.close()
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]
    with pytest.raises(DatasetError, match="closed"):
        writer.add(random_episode(metadata.observation_space, metadata.action_space, 9, rng))


def test_unused_reserved_space_is_released(tmp_path: Path) -> None:
    path = write_random(tmp_path / "d.h5", [3, 2])
    assert path.stat().st_size < 120_000
    with h5py.File(path) as file:
        assert file.id.get_filesize() == path.stat().st_size


def test_no_file_is_overwritten_and_no_empty_file_is_left(tmp_path: Path) -> None:
    path = write_random(tmp_path / "d.h5", [3])
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="exists already"):
        DatasetWriter(path, vector_metadata())
    assert path.read_bytes() == before
    DatasetWriter(tmp_path / "e.h5", vector_metadata()).close()
    first = DatasetWriter(tmp_path / "f.h5", vector_metadata())
    with pytest.raises(DatasetError, match=r"f\.h5\.partial.*another recording"):
        DatasetWriter(tmp_path / "f.h5", vector_metadata())
    first.close()
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]
    with pytest.raises(DatasetError, match="folder"):
        DatasetWriter(tmp_path / "d.h5" / "g.h5", vector_metadata())


def test_the_folder_is_created(tmp_path: Path) -> None:
    assert write_random(tmp_path / "some" / "where" / "d.h5", [3]).exists()


BAD_EPISODES = {
    "row 2.*NaN": {"observations": np.array([[0, 0, 0]] * 2 + [[0, np.nan, 0]] * 2, "f4")},
    "row 1.*infinity": {"rewards": np.array([0, np.inf, 0], "f4")},
    "row 1.*1e\\+200 does not fit": {"rewards": np.array([0, 1e200, 0])},
    "action.*row 2.*outside": {"actions": np.array([0, 1, 2])},
    "action.*dtype is float64": {"actions": np.array([0.0, 1.0, 1.0])},
    "observation.*shape": {"observations": np.zeros((3, 3), "f4")},
    "keys": {"observations": {"x": np.zeros((4, 3), "f4")}},
    "complete": {"complete": False},
    "seed -5": {"seed": -5},
}


@pytest.mark.parametrize("message", BAD_EPISODES)
def test_bad_episodes_are_refused_and_leave_the_others_intact(tmp_path: Path, message: str) -> None:
    metadata = vector_metadata()
    rng = np.random.default_rng(0)
    good = random_episode(metadata.observation_space, metadata.action_space, 3, rng)
    with DatasetWriter(tmp_path / "d.h5", metadata) as writer:
        writer.add(good)
        with pytest.raises(DatasetError, match=f"episode 1.*{message}|{message}.*") as caught:
            writer.add(dataclasses.replace(good, **BAD_EPISODES[message]))
        assert caught.value.episode == 1
        writer.add(good)
    with Dataset(tmp_path / "d.h5") as dataset:
        assert dataset.num_episodes == 2


def test_an_episode_without_actions_is_refused(tmp_path: Path) -> None:
    empty = random_episode(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), 1, np.random.default_rng(0))
    empty = dataclasses.replace(
        empty,
        observations=empty.observations[:1],
        actions=empty.actions[:0],
        rewards=empty.rewards[:0],
    )
    writer = DatasetWriter(tmp_path / "d.h5", vector_metadata())
    with pytest.raises(DatasetError, match="no actions"):
        writer.add(empty)
    writer.close()


def test_values_of_another_dtype_are_cast_if_their_range_fits(tmp_path: Path) -> None:
    metadata = DatasetMetadata(
        observation_space=spaces.Box(0, 255, (2,), np.uint8), action_space=spaces.Discrete(2)
    )
    base = random_episode(
        metadata.observation_space, metadata.action_space, 2, np.random.default_rng(0)
    )
    wide = dataclasses.replace(base, observations=np.array([[0, 1], [2, 3], [4, 255]], np.int64))
    over = dataclasses.replace(base, observations=np.array([[0, 1], [2, 3], [4, 256]], np.int64))
    with DatasetWriter(tmp_path / "d.h5", metadata) as writer:
        writer.add(wide)
        with pytest.raises(DatasetError, match="row 2: 256 does not fit in uint8"):
            writer.add(over)
    with Dataset(tmp_path / "d.h5") as dataset:
        assert dataset.episode(0).observations.tolist() == [[0, 1], [2, 3], [4, 255]]


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_writer_loses_no_committed_episode(tmp_path: Path) -> None:
    done = run_python(
        """
        import os, signal, numpy as np
        from dreamgym.data import DatasetWriter
        from tests.data.samples import random_episode, vector_metadata
        m = vector_metadata()
        writer = DatasetWriter("d.h5", m)
        rng = np.random.default_rng(0)
        for _ in range(30):
            writer.add(random_episode(m.observation_space, m.action_space, 50, rng))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with Dataset.snapshot(tmp_path / "d.h5") as dataset:
        assert dataset.num_episodes == 30
        assert dataset.num_steps == 1500
    with pytest.raises(DatasetError, match="dreamgym recover"):
        Dataset(tmp_path / "d.h5")
    with pytest.raises(DatasetError, match=r"its writer was killed.*dreamgym recover"):
        Dataset(tmp_path / "d.h5.partial")


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
@pytest.mark.parametrize("limit", [150_000, 1_000_000, 3_000_000])
def test_a_full_disk_is_a_clear_error_and_loses_no_committed_episode(
    tmp_path: Path, limit: int
) -> None:
    done = run_python(
        f"""
        import resource, numpy as np
        from gymnasium import spaces
        from dreamgym.data import DatasetWriter, DatasetMetadata, DatasetError
        from tests.data.samples import random_episode
        m = DatasetMetadata(
            observation_space=spaces.Box(0, 255, (32, 32, 3), np.uint8),
            action_space=spaces.Discrete(2),
        )
        episode = random_episode(m.observation_space, m.action_space, 7, np.random.default_rng(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
        writer = DatasetWriter("d.h5", m)
        try:
            for count in range(1000):
                writer.add(episode)
        except DatasetError as error:
            print(count, error)
        writer.close()
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    committed, _, message = done.stdout.partition(" ")
    assert "no room to write" in message
    assert f"{committed} episodes" in message
    left = [p.name for p in tmp_path.iterdir()]
    if committed == "0":
        assert left == []
        return
    assert left == ["d.h5"]
    with Dataset(tmp_path / "d.h5") as dataset:
        assert dataset.num_episodes == int(committed)
        assert dataset.num_steps == 7 * int(committed)


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_no_room_to_create_the_file(tmp_path: Path) -> None:
    done = run_python(
        """
        import resource
        from dreamgym.data import DatasetWriter, DatasetError
        from tests.data.samples import vector_metadata
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            DatasetWriter("d.h5", vector_metadata())
        except DatasetError as error:
            print(error)
        """,
        tmp_path,
    )
    assert "cannot be created" in done.stdout, done.stderr
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- several episodes in a commit

METADATA = vector_metadata()


def random_episodes(count: int) -> list[Episode]:
    rng = np.random.default_rng(0)
    spaces_of = METADATA.observation_space, METADATA.action_space
    return [random_episode(*spaces_of, 3 + number, rng) for number in range(count)]


@pytest.mark.parametrize("commit_every", [2, 3, 100])
def test_a_file_does_not_depend_on_how_often_it_was_committed(
    tmp_path: Path, commit_every: int
) -> None:
    episodes = random_episodes(7)
    for name, every in (("one.h5", 1), ("many.h5", commit_every)):
        with DatasetWriter(tmp_path / name, METADATA, commit_every=every) as writer:
            for episode in episodes:
                writer.add(episode)
            assert writer.num_episodes == 7
    with Dataset(tmp_path / "one.h5") as one, Dataset(tmp_path / "many.h5") as many:
        assert one.checksum == many.checksum
        for index in range(7):
            assert_same_episode(one.episode(index), many.episode(index))


def test_episodes_are_there_once_they_are_committed(tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    with DatasetWriter(path, METADATA, commit_every=3) as writer:
        for number, episode in enumerate(random_episodes(8), start=1):
            writer.add(episode)
            if number >= 3:
                with Dataset.snapshot(path) as dataset:
                    assert len(dataset) == 3 * (number // 3)
        writer.commit()
        with Dataset.snapshot(path) as dataset:
            assert len(dataset) == 8
    with DatasetWriter.extend(path, commit_every=3) as writer:
        writer.add(random_episodes(1)[0])
    with Dataset(path) as dataset:
        assert len(dataset) == 9


def test_arrays_may_change_before_their_episode_is_committed(tmp_path: Path) -> None:
    episode = random_episodes(1)[0]
    kept = np.copy(episode.observations)
    with DatasetWriter(tmp_path / "d.h5", METADATA, commit_every=2) as writer:
        writer.add(episode)
        episode.observations[:] = 0
    with Dataset(tmp_path / "d.h5") as dataset:
        np.testing.assert_array_equal(dataset.episode(0).observations, kept)


def test_large_episodes_are_committed_early(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dreamgym.data.hdf5.writer._PENDING_BYTES", 10)
    with DatasetWriter(tmp_path / "d.h5", METADATA, commit_every=1000) as writer:
        writer.add(random_episodes(1)[0])
        with Dataset.snapshot(tmp_path / "d.h5") as dataset:
            assert len(dataset) == 1


def test_a_commit_has_an_episode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="commit_every is 0"):
        DatasetWriter(tmp_path / "d.h5", METADATA, commit_every=0)
    assert not list(tmp_path.iterdir())
