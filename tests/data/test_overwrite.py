"""`overwrite=True` replaces an existing dataset once the new one is complete, and never before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest

from dreamgym.data import (
    Dataset,
    DatasetError,
    ShardPlan,
    convert,
    pack,
    record,
    record_shards,
    resume,
)
from tests.data.samples import write_random


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def d4rl_file(path: Path, *, damaged: bool = False) -> Path:
    """A small dataset in D4RL's format, of four episodes."""
    observations = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    if damaged:
        observations[13] = np.nan
    with h5py.File(path, "w") as file:
        file["observations"] = observations
        file["actions"] = np.zeros((40, 2), np.float32)
        file["rewards"] = np.ones(40, np.float32)
        file["terminals"] = np.zeros(40, bool)
        file["timeouts"] = np.arange(40) % 10 == 9
    return path


class Failing(gym.Wrapper):
    """CartPole that raises an error after some steps."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.left, self.error = after, error

    def step(self, action: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.env.step(action)


def test_a_complete_recording_replaces_the_old_one(tmp_path: Path) -> None:
    out = record("CartPole-v1", steps=50, out=tmp_path / "d.h5", seed=1)
    again = record("CartPole-v1", steps=80, out=out, seed=2, overwrite=True)
    assert again == out
    assert names(tmp_path) == ["d.h5"]
    with Dataset(out) as dataset:
        assert (dataset.num_steps, dataset.metadata.seed) == (80, 2)
    # The new file is an ordinary dataset, which can be continued.
    resume("CartPole-v1", steps=90, out=out)
    with Dataset(out) as dataset:
        assert dataset.num_steps == 90


def test_there_need_be_nothing_to_replace(tmp_path: Path) -> None:
    record("CartPole-v1", steps=50, out=tmp_path / "d.h5", overwrite=True)
    record_shards("CartPole-v1", tmp_path / "s", ShardPlan(steps=20, workers=1), overwrite=True)
    assert names(tmp_path) == ["d.h5", "s"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConnectionError("the robot fell over")])
def test_an_unfinished_recording_leaves_the_old_one_and_is_kept_beside_it(
    tmp_path: Path, error: BaseException
) -> None:
    out = record("CartPole-v1", steps=50, out=tmp_path / "d.h5")
    before = out.read_bytes()
    with pytest.raises(type(error)) as caught:
        record(Failing(30, error), steps=100, out=out, overwrite=True)
    assert out.read_bytes() == before
    assert names(tmp_path) == ["d.h5", "d.h5.new"]
    assert any(str(tmp_path / "d.h5.new") in note for note in caught.value.__notes__)
    with Dataset(tmp_path / "d.h5.new") as dataset:
        assert dataset.num_steps == 30
    # What it left is not lost to the next attempt either.
    with pytest.raises(DatasetError, match=r"d\.h5\.new: it exists already"):
        record("CartPole-v1", steps=50, out=out, overwrite=True)


@pytest.mark.parametrize(
    "arguments",
    [{"env": "NoSuchEnv-v0"}, {"env": "FrozenLake-v1"}, {"policy": "wise"}, {"steps": 0}],
)
def test_bad_arguments_leave_the_old_one(tmp_path: Path, arguments: dict) -> None:
    out = record("CartPole-v1", steps=50, out=tmp_path / "d.h5")
    before = out.read_bytes()
    given: dict[str, Any] = {"env": "CartPole-v1", "steps": 50} | arguments
    with pytest.raises((DatasetError, TypeError, ValueError)):
        record(given.pop("env"), out=out, overwrite=True, **given)
    assert out.read_bytes() == before
    assert names(tmp_path) == ["d.h5"]


def test_what_is_not_replaced(tmp_path: Path) -> None:
    shards = record_shards("CartPole-v1", tmp_path / "s", ShardPlan(steps=20, workers=1))
    with pytest.raises(DatasetError, match="it is a folder"):
        record("CartPole-v1", steps=50, out=shards, overwrite=True)
    out = record("CartPole-v1", steps=50, out=tmp_path / "d.h5")
    plan = ShardPlan(steps=20, workers=1)
    with pytest.raises(DatasetError, match="it is a file"):
        record_shards("CartPole-v1", out, plan, overwrite=True)
    (shards / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"more than shards, such as notes\.txt"):
        record_shards("CartPole-v1", shards, plan, overwrite=True)
    assert names(shards) == ["notes.txt", "shard-0000.h5"]
    (tmp_path / "d.h5.partial").write_text("another recording")
    with pytest.raises(DatasetError, match=r"d\.h5\.partial.*another recording"):
        record("CartPole-v1", steps=50, out=out, overwrite=True)
    assert names(tmp_path) == ["d.h5", "d.h5.partial", "s"]


def fall_over(observation: np.ndarray) -> int:
    raise ConnectionError("the robot fell over")


def test_shards_are_replaced_together(tmp_path: Path) -> None:
    folder = record_shards("CartPole-v1", tmp_path / "s", ShardPlan(steps=20, workers=2))
    with Dataset(folder) as dataset:
        before = dataset.checksum
    failing = ShardPlan(steps=20, workers=1, policy=fall_over)
    with pytest.raises(DatasetError, match="fell over"):
        record_shards("CartPole-v1", folder, failing, overwrite=True)
    with Dataset(folder) as dataset:
        assert dataset.checksum == before
    assert names(tmp_path) == ["s"]  # the failed process recorded nothing
    plan = ShardPlan(steps=30, workers=1, seed=3)
    assert record_shards("CartPole-v1", folder, plan, overwrite=True) == folder
    assert names(tmp_path) == ["s"]
    assert names(folder) == ["shard-0000.h5"]
    with Dataset(folder) as dataset:
        assert dataset.num_steps == 30


def test_a_conversion_replaces_a_file_only_when_it_succeeds(tmp_path: Path) -> None:
    out = write_random(tmp_path / "d.h5", [3, 4])
    before = out.read_bytes()
    bad = d4rl_file(tmp_path / "bad.hdf5", damaged=True)
    with pytest.raises(DatasetError, match="exists already"):
        convert(bad, out)
    with pytest.raises(DatasetError, match="NaN"):
        convert(bad, out, overwrite=True)
    assert out.read_bytes() == before
    assert names(tmp_path) == ["bad.hdf5", "d.h5"]
    done = convert(d4rl_file(tmp_path / "good.hdf5"), out, overwrite=True)
    assert (done.path, done.episodes) == (out, 4)
    assert names(tmp_path) == ["bad.hdf5", "d.h5", "good.hdf5"]
    with Dataset(out) as dataset:
        assert dataset.num_episodes == 4


def test_packing_replaces_a_file_only_when_it_succeeds(tmp_path: Path) -> None:
    source, out = write_random(tmp_path / "a.h5", [30]), write_random(tmp_path / "b.h5", [3])
    (tmp_path / "bad.h5").write_bytes(source.read_bytes()[:5000])
    with pytest.raises(DatasetError, match="truncated"):
        pack(tmp_path / "bad.h5", out, overwrite=True)
    with Dataset(out) as dataset:
        assert dataset.lengths.tolist() == [3]
    pack(source, out, overwrite=True)
    pack(source, source, overwrite=True)  # in place
    assert names(tmp_path) == ["a.h5", "b.h5", "bad.h5"]
    for path in (source, out):
        with Dataset(path) as dataset:
            assert dataset.lengths.tolist() == [30]
