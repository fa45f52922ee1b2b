"""What each process and each piece sees of a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dreamgym
from dreamgym.data import Dataset
from dreamgym.fitting.batches import Batches, Piece, Share


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "cartpole.h5"
    return dreamgym.record("CartPole-v1", steps=300, out=out, seed=0)


def drawn(data: Path, share: Share, memory: int = 1 << 30) -> list[Piece]:
    with Dataset(data, memory=memory) as dataset:
        episodes = np.arange(dataset.num_episodes)
        return Batches(dataset, episodes, sizes=(16, 10, 3), share=share, seed=(5, 0)).draw(2)


def rows(pieces: list[Piece]) -> set[tuple]:
    return {
        (*map(float, batch.observation[k].ravel()), *map(float, noise[k].ravel()))
        for batch, noise, _ in pieces
        for k in range(len(batch.mask))
    }


@pytest.mark.parametrize("pieces", [1, 2, 4])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_make_up_the_batch_of_one_process(data, processes, pieces):
    (whole,) = drawn(data, Share())
    shares = [drawn(data, Share(k, processes, pieces)) for k in range(processes)]
    assert all(len(share) == pieces for share in shares)
    sizes = {len(piece.batch.mask) for share in shares for piece in share}
    assert sizes == {16 // processes // pieces}
    assert set.union(*map(rows, shares)) == rows([whole])
    seeds = [piece.seed for share in shares for piece in share]
    assert len(set(seeds)) == len(seeds)
    assert whole.seed in seeds


def test_pieces_have_as_many_real_transitions(data):
    (whole,) = drawn(data, Share())
    assert not whole.batch.mask.all()
    counts = [int(piece.batch.mask.sum()) for piece in drawn(data, Share(pieces=4))]
    assert sum(counts) == whole.batch.mask.sum()
    assert max(counts) - min(counts) <= 3
