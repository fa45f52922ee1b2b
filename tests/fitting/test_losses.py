"""Losses of batches in pieces: the same as of the whole batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dreamgym
from dreamgym import OptimizerConfig
from dreamgym.data import Dataset
from dreamgym.fitting.batches import Batches, BatchLosses, Share
from dreamgym.fitting.distributed import launched
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


def found(family: str, path: Path, pieces: int) -> tuple[dict, torch.Tensor, dict]:
    """Terms and gradient of a batch with padding in it, and the mean terms of three batches."""
    config = replace(
        dreamgym.FitConfig(batch_size=32, segment_length=12),
        optimizer=OptimizerConfig(accumulate=pieces),
    )
    with Dataset(path) as dataset:
        model, every = fresh(family, dataset), range(dataset.num_episodes)
        sizes = (config.batch_size, config.segment_length, model.noise_dim)
        batches = Batches(
            dataset,
            torch.tensor(every).numpy(),
            sizes=sizes,
            share=Share(pieces=pieces),
            seed=(0, 0),
        )
        assert not all(piece.batch.mask.all() for piece in batches.draw(0))
        losses = BatchLosses(launched(config), model)
        terms = losses.gradient(batches.draw(0))
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return terms, gradient, losses.mean(batches.draw(k) for k in range(3))


@pytest.mark.parametrize(
    ("family", "tolerance"), [("mdn-rnn", 1e-5), ("pets", 1e-5), ("rssm", 5e-3)]
)
def test_the_gradient_of_the_pieces_is_that_of_the_batch(data, family, tolerance):
    """But for terms that count an episode's first observation too, up to padding."""
    terms, gradient, mean = found(family, data, 1)
    cut_terms, cut_gradient, cut_mean = found(family, data, 8)
    assert float((cut_gradient - gradient).norm() / gradient.norm()) < tolerance
    for name, value in terms.items():
        assert float(cut_terms[name]) == pytest.approx(float(value), rel=tolerance)
        assert float(cut_mean[name]) == pytest.approx(float(mean[name]), rel=tolerance)
