"""Counter-based noise: statistics that a bad hash would fail."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from scipy import stats

from dreamgym.dream.noise import row_keys
from dreamgym.models.splitmix import uniforms

SIGNIFICANCE = 1e-4


def counters(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int64)


def zeros(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


SEED = torch.tensor(7, dtype=torch.int64)


VARIED = {
    "envs": lambda n: (SEED, counters(n), zeros(n), zeros(n)),
    "episodes": lambda n: (SEED, zeros(n), counters(n), zeros(n)),
    "steps": lambda n: (SEED, zeros(n), zeros(n), counters(n)),
}


@pytest.mark.parametrize("varied", sorted(VARIED))
def test_numbers_along_each_counter_are_uniform_and_independent(varied):
    numbers = uniforms(row_keys(*VARIED[varied](20_000)), 4).double().numpy()
    for lane in numbers.T:
        assert stats.kstest(lane, "uniform").pvalue > SIGNIFICANCE
        pairs, *_ = np.histogram2d(lane[:-1], lane[1:], bins=16, range=[[0, 1], [0, 1]])
        assert stats.chisquare(pairs.ravel()).pvalue > SIGNIFICANCE
    for one, other in ((0, 1), (0, 3), (1, 2)):
        assert stats.pearsonr(numbers[:, one], numbers[:, other]).pvalue > SIGNIFICANCE


def test_lanes_of_one_row_are_uniform_and_independent():
    lane = uniforms(row_keys(SEED, zeros(1), zeros(1), zeros(1)), 50_000)[0].double().numpy()
    assert stats.kstest(lane, "uniform").pvalue > SIGNIFICANCE
    triples, _ = np.histogramdd(np.stack([lane[:-2], lane[1:-1], lane[2:]], 1), bins=8)
    assert stats.chisquare(triples.ravel()).pvalue > SIGNIFICANCE


def test_every_counter_and_the_seed_change_the_numbers():
    base = [SEED, zeros(1), zeros(1), zeros(1)]
    seen = {float(uniforms(row_keys(*base), 1))}
    for index in range(4):
        changed = [value + (position == index) for position, value in enumerate(base)]
        seen.add(float(uniforms(row_keys(*changed), 1)))
    # Counters are not interchangeable.
    seen.add(float(uniforms(row_keys(SEED, zeros(1), zeros(1) + 1, zeros(1) + 1), 1)))
    assert len(seen) == 6


def test_numbers_are_below_one_and_do_not_depend_on_how_many_are_drawn():
    keys = row_keys(SEED, counters(64), zeros(64), zeros(64))
    many = uniforms(keys, 4096)
    assert many.dtype == torch.float32
    assert float(many.min()) >= 0
    assert float(many.max()) < 1
    assert torch.equal(many[:5, :3], uniforms(keys[:5], 3))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch's compiler needs g++")
def test_compiled_numbers_are_the_same():
    keys = row_keys(SEED, counters(5), zeros(5), zeros(5))
    compiled = torch.compile(lambda keys: uniforms(keys, 65), fullgraph=True, dynamic=False)
    for _ in range(3):
        assert torch.equal(compiled(keys), uniforms(keys, 65))
