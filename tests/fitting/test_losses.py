"""Losses under gradient accumulation equal those of the whole batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dreamgym
from dreamgym import OptimizerConfig
from dreamgym.data import Dataset
from dreamgym.fitting.batches import Batches, BatchLosses, Shard
from dreamgym.fitting.distributed import launch
from dreamgym.models import FAMILIES, RSSMConfig, WorldModel
from dreamgym.models.statistics import measure_statistics

SMALL = {"rssm": RSSMConfig(deter=16, hidden=16, stoch=4, classes=4, units=16)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "cartpole.h5"
    return dreamgym.record("CartPole-v1", steps=400, out=out, seed=0)


def fresh(family: str, dataset: Dataset) -> WorldModel:
    torch.manual_seed(0)
    config = SMALL.get(family, FAMILIES[family].config_type())
    model = FAMILIES[family](dataset.observation_space, dataset.action_space, config)
    episodes = (dataset.episode(k) for k in range(dataset.num_episodes))
    model.set_statistics(measure_statistics((e.observations, e.rewards) for e in episodes))
    return model.train()


def measure(family: str, path: Path, accumulate: int) -> tuple[dict, torch.Tensor, dict]:
    """Terms and gradient of a batch with padding in it, and the mean terms of three batches."""
    config = replace(
        dreamgym.FitConfig(batch_size=32, segment_length=12),
        optimizer=OptimizerConfig(accumulate=accumulate),
    )
    with Dataset(path) as dataset:
        model, every = fresh(family, dataset), range(dataset.num_episodes)
        sizes = (config.batch_size, config.segment_length, model.noise_dim)
        batches = Batches(
            dataset,
            torch.tensor(every).numpy(),
            sizes=sizes,
            shard=Shard(accumulate=accumulate),
            seed=(0, 0),
        )
        assert not all(each.batch.mask.all() for each in batches.draw(0))
        losses = BatchLosses(launch(config), model)
        terms = losses.backward(batches.draw(0))
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return terms, gradient, losses.mean(batches.draw(k) for k in range(3))


@pytest.mark.parametrize(
    ("family", "tolerance"), [("mdn-rnn", 1e-5), ("pets", 1e-5), ("rssm", 5e-3)]
)
def test_the_gradient_of_micro_batches_is_that_of_the_batch(data, family, tolerance):
    """RSSM terms also count first observations, so its tolerance covers differences in padding."""
    terms, gradient, mean = measure(family, data, 1)
    cut_terms, cut_gradient, cut_mean = measure(family, data, 8)
    assert float((cut_gradient - gradient).norm() / gradient.norm()) < tolerance
    for name, value in terms.items():
        assert float(cut_terms[name]) == pytest.approx(float(value), rel=tolerance)
        assert float(cut_mean[name]) == pytest.approx(float(mean[name]), rel=tolerance)
