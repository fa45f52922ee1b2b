"""Division of a batch among processes and micro-batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dreamgym
from dreamgym.data import Dataset
from dreamgym.fitting.batches import Batches, MicroBatch, Shard


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "cartpole.h5"
    return dreamgym.record("CartPole-v1", steps=300, out=out, seed=0)


def draw(data: Path, shard: Shard) -> list[MicroBatch]:
    with Dataset(data) as dataset:
        episodes = np.arange(dataset.num_episodes)
        return Batches(dataset, episodes, sizes=(16, 10, 3), shard=shard, seed=(5, 0)).draw(2)


def rows(micro_batches: list[MicroBatch]) -> set[tuple]:
    return {
        (*map(float, batch.observation[k].ravel()), *map(float, noise[k].ravel()))
        for batch, noise, _ in micro_batches
        for k in range(len(batch.mask))
    }


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shards_make_up_the_batch_of_one_process(data, processes, accumulate):
    (whole,) = draw(data, Shard())
    shards = [draw(data, Shard(k, processes, accumulate)) for k in range(processes)]
    assert all(len(shard) == accumulate for shard in shards)
    sizes = {len(each.batch.mask) for shard in shards for each in shard}
    assert sizes == {16 // processes // accumulate}
    assert set.union(*map(rows, shards)) == rows([whole])
    seeds = [each.seed for shard in shards for each in shard]
    assert len(set(seeds)) == len(seeds)
    assert whole.seed in seeds


def test_micro_batches_have_similar_numbers_of_real_transitions(data):
    (whole,) = draw(data, Shard())
    assert not whole.batch.mask.all()
    counts = [int(each.batch.mask.sum()) for each in draw(data, Shard(accumulate=4))]
    assert sum(counts) == whole.batch.mask.sum()
    assert max(counts) - min(counts) <= 3
