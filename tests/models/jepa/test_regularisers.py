"""VICReg against its equations in float64, batch norm against torch's, and collapse metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dreamgym.models.jepa.regularisers import (
    collapse_metrics,
    temporal_alignment,
    variance_covariance,
)
from dreamgym.models.nn.batch_norm import BatchNorm, moments
from dreamgym.models.reduction import masked_mean


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_variance_and_covariance_terms_are_those_of_vicreg():
    x = normals(30, 2, 5).mul(0.7)
    x[..., 1] += x[..., 0]
    deficits, correlations = [], []
    for step in range(2):
        z = x[:, step].double().numpy()
        c = torch.from_numpy(np.cov(z.T))
        deficits.append((1 - (c.diagonal() + 1e-4).sqrt()).clamp(min=0).mean())
        correlations.append((c**2).sum().sub((c.diagonal() ** 2).sum()) / (5 * 4))
    deficit, correlation = variance_covariance(x, torch.ones(30, 2, dtype=torch.bool))
    torch.testing.assert_close(deficit.double(), torch.stack(deficits).mean(), rtol=1e-4, atol=1e-6)
    expected = torch.stack(correlations).mean()
    torch.testing.assert_close(correlation.double(), expected, rtol=1e-4, atol=1e-6)


def test_padding_is_ignored():
    x, mask = normals(30, 3, 5), torch.ones(30, 3, dtype=torch.bool)
    mask[20:, 1] = False
    mask[1:, 2] = False  # a single row has no variance: this time step is left out
    padded = x.masked_fill(~mask.unsqueeze(-1), 1e3)
    terms = variance_covariance(padded, mask)
    parts = [
        variance_covariance(y, torch.ones(y.shape[:2], dtype=torch.bool))
        for y in (x[:, :1], x[:20, 1:2])
    ]
    torch.testing.assert_close(terms, tuple((a + b) / 2 for a, b in zip(*parts, strict=True)))
    change = (x[:, 1] - x[:, 0]).square().mean(-1)[:20].sum() + (x[0, 2] - x[0, 1]).square().mean()
    torch.testing.assert_close(temporal_alignment(padded, mask), change / 21)


def test_batch_norm_is_torchs_without_padding():
    ours, theirs = BatchNorm(6), nn.BatchNorm1d(6)
    for _ in range(3):
        x = normals(40, 6).mul(2).add(1)
        torch.testing.assert_close(ours(x, torch.ones(40, dtype=torch.bool)), theirs(x))
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    x = normals(4, 6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_batch_norm_ignores_padding():
    one, other = BatchNorm(6), BatchNorm(6)
    x, mask = normals(40, 6), torch.arange(40) < 25
    padded = one(x.masked_fill(~mask.unsqueeze(-1), 1e3), mask)[:25]
    torch.testing.assert_close(padded, other(x[:25], mask[:25]))
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()))


def test_moments_ignore_padding():
    x, mask = normals(50, 4), torch.arange(50) < 30
    batch = moments(x, mask)
    torch.testing.assert_close(batch.mean, x[:30].mean(0))
    torch.testing.assert_close(batch.variance, x[:30].var(0, unbiased=False))
    torch.testing.assert_close(masked_mean(x, mask.unsqueeze(-1)), x[:30].mean())


def test_collapse_metrics_detect_a_collapse():
    whole = torch.ones(500, 4, dtype=torch.bool)
    healthy = collapse_metrics(normals(500, 4, 8), whole)
    assert healthy["embedding_std"] == pytest.approx(1.0, abs=0.05)
    assert healthy["effective_rank"] == pytest.approx(8.0, abs=0.1)
    line = collapse_metrics(normals(500, 4, 1) * torch.ones(8), whole)
    assert line["effective_rank"] == pytest.approx(1.0, abs=0.01)
    point = collapse_metrics(torch.ones(500, 4, 8), whole)
    assert point["embedding_std"] == pytest.approx(0.0, abs=1e-3)
