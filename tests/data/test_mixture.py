"""Several datasets read as one, each with a weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dreamgym.data import (
    Dataset,
    DatasetError,
    FrameSkip,
    MixedDataset,
    SkippedDataset,
    open_dataset,
    record,
)
from tests.data.samples import assert_same_episode, image_cartpole, write_random


def test_episodes_are_numbered_through(tmp_path: Path) -> None:
    paths = [write_random(tmp_path / "a.h5", [3, 4, 5]), write_random(tmp_path / "b.h5", [6, 7])]
    with Dataset(paths[0]) as a, Dataset(paths[1]) as b:
        mixed = MixedDataset([(a, 1), (b, 3)])
        assert mixed.num_episodes == 5
        assert mixed.num_steps == 25
        assert mixed.lengths.tolist() == [3, 4, 5, 6, 7]
        for index, episode in enumerate([a.episode(i) for i in range(3)] + [b.episode(0)]):
            assert_same_episode(mixed.episode(index), episode)
        with pytest.raises(IndexError):
            mixed.episode(5)
        assert mixed.selection == {"weights": [1.0, 3.0]}
        assert mixed.checksum not in (a.checksum, b.checksum)
        fitted, held_out = mixed.split(0.3, seed=1)
        assert sorted([*fitted, *held_out]) == [0, 1, 2, 3, 4]
        assert min(held_out) < 3 <= max(held_out)  # one episode of each dataset is held out
        mixed.verify()


def test_a_dataset_of_one_short_episode_is_for_training_beside_others(tmp_path: Path) -> None:
    paths = [write_random(tmp_path / "a.h5", [3, 4, 5]), write_random(tmp_path / "b.h5", [6])]
    with open_dataset([(path, 1.0) for path in paths]) as mixed:
        fitted, held_out = mixed.split(0.3, seed=1)
        assert sorted([*fitted, *held_out]) == [0, 1, 2, 3]
        assert 3 in fitted
        assert len(held_out) == 1
    with open_dataset([(paths[1], 1.0)]) as alone, pytest.raises(DatasetError, match="1 episode"):
        alone.split(0.3)


def test_episodes_of_random_actions_are_known(tmp_path: Path) -> None:
    random = record("CartPole-v1", steps=60, out=tmp_path / "a.h5", policy="held:2", seed=0)
    chosen = record("CartPole-v1", steps=20, out=tmp_path / "b.h5", policy=lambda _: 1, seed=0)
    with Dataset(random) as a, Dataset(chosen) as b:
        skipped = SkippedDataset(a, FrameSkip(steps=2))
        assert skipped.random_actions.tolist() == [True] * skipped.num_episodes
        known = MixedDataset([(a, 1), (b, 1)]).random_actions
    assert known.tolist() == [True] * a.num_episodes + [False] * b.num_episodes


def test_segments_are_drawn_by_weight(tmp_path: Path) -> None:
    paths = [write_random(tmp_path / "a.h5", [500]), write_random(tmp_path / "b.h5", [5])]
    with open_dataset([(paths[0], 1.0), (paths[1], 3.0)]) as mixed:
        short = mixed.episode(1).observations
        batch = mixed.segments([0, 1], 1).draw(4000, np.random.default_rng(0))
        from_short = (batch.observation[:, :1] == short[None]).all(axis=2).any(axis=1)
        assert from_short.mean() == pytest.approx(0.75, abs=0.03)
        only = mixed.segments([1], 1).draw(50, np.random.default_rng(0))
        assert (only.observation[:, :1] == short[None]).all(axis=2).any(axis=1).all()


def test_distinct_segments_do_not_repeat_and_end_where_all_are_drawn(tmp_path: Path) -> None:
    paths = [write_random(tmp_path / "a.h5", [500]), write_random(tmp_path / "b.h5", [5, 7])]
    rng = np.random.default_rng(0)
    with open_dataset([(paths[0], 1.0), (paths[1], 1.0)]) as mixed:
        segments = mixed.segments([0, 1, 2], 3)
        some, all_short = segments.draw_distinct(8, rng), segments.draw_distinct(100, rng)
        part = mixed.segments([1], 2).draw_distinct(50, rng)
    for batch in (some, all_short, part):
        assert len(np.unique(batch.observation[:, 0], axis=0)) == len(batch.mask)
    assert len(some.mask) == 8
    assert 12 + 30 < len(all_short.mask) < 12 + 70  # the 12 of one, half of 100 of the other
    assert len(part.mask) == 5
    blocks = SkippedDataset(Dataset(paths[0]), FrameSkip(steps=2)).segments([0], 4)
    assert len(blocks.draw_distinct(1000, rng).mask) >= 499  # they begin at any step


def test_invalid_mixtures_are_refused(tmp_path: Path, cartpole: Path) -> None:
    path = write_random(tmp_path / "a.h5", [3, 4])
    images = record(image_cartpole(), steps=40, out=tmp_path / "i.h5")
    for pairs, error, message in (
        ([], DatasetError, "no dataset"),
        ([(path, 0.0)], ValueError, "weights"),
        ([(path, -1.0), (path, 2.0)], ValueError, "weights"),
        ([(path, float("nan"))], ValueError, "weights"),
        ([(cartpole, 1.0), (images, 1.0)], DatasetError, "i.h5.*not those of"),
    ):
        with pytest.raises(error, match=message), open_dataset(pairs):
            pass
    with (
        open_dataset([(path, 1.0), (path, 0.0)]) as mixed,
        pytest.raises(DatasetError, match="weight"),
    ):
        mixed.segments([2, 3], 1)
