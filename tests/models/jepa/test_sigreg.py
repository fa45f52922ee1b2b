"""SIGReg against the equations of arXiv 2511.08544 in float64, and on known batches."""

from __future__ import annotations

import pytest
import torch

from dreamgym.models.jepa.loss import projections, sigreg

BATCH, STEPS, WIDTH = 128, 3, 24


def uniforms(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_of(embeddings: torch.Tensor) -> torch.Tensor:
    return torch.ones(embeddings.shape[:2], dtype=torch.bool)


def by_the_book(embeddings: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Equation by equation in float64, with the trapezoid over all of [-3, 3]."""
    t = torch.linspace(-3, 3, 33, dtype=torch.float64)
    statistics = []
    for step in range(embeddings.shape[1]):
        projected = embeddings[:, step].double() @ directions.double()
        empirical = torch.exp(1j * t * projected.unsqueeze(-1)).mean(0)
        standard = torch.exp(-(t**2) / 2)
        weighted = (empirical - standard).abs() ** 2 * torch.exp(-(t**2) / 2)
        statistics.append(len(projected) * torch.trapezoid(weighted, t, dim=-1).mean())
    return torch.stack(statistics).mean()


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.5])
def test_it_is_the_published_statistic(scale):
    x = normals(BATCH, STEPS, WIDTH).mul(scale).add(0.1)
    directions = projections(uniforms(4), WIDTH, 200)
    got, wanted = sigreg(x, all_of(x), directions), by_the_book(x, directions)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


def test_its_gradient_is_that_of_the_published_statistic():
    x, directions = normals(16, 2, 5), projections(uniforms(4), 5, 300)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    sigreg(one, all_of(one), directions).backward()
    by_the_book(other, directions).backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


def test_values_that_its_authors_code_gives():
    """Measured beforehand, batch 128: 1.07 on normal embeddings, 51.5 on collapsed ones."""
    directions = projections(uniforms(4), 192)
    normal = torch.stack(
        [sigreg(x, all_of(x), directions) for x in (normals(128, 4, 192, seed=s) for s in range(8))]
    )
    assert normal.mean() == pytest.approx(1.05, abs=0.04)
    same = torch.zeros(128, 4, 192)
    assert sigreg(same, all_of(same), directions) == pytest.approx(51.46, abs=0.1)


def test_directions_are_unit_vectors_that_the_noise_determines():
    noise = uniforms(8, 3, 2)
    directions = projections(noise, 192)
    assert directions.shape == (192, 1024)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(1024))
    assert torch.equal(directions, projections(noise.clone(), 192))
    assert not torch.equal(directions, projections(uniforms(8, 3, 2, seed=1), 192))
    # Uniform on the sphere: mean nothing, covariance the identity over the width.
    many = projections(noise, 6, 50_000)
    torch.testing.assert_close(many.mean(1), torch.zeros(6), atol=0.01, rtol=0)
    torch.testing.assert_close(many @ many.T / 50_000 * 6, torch.eye(6), atol=0.03, rtol=0)


def test_no_generator_is_touched():
    before = torch.get_rng_state()
    projections(uniforms(4), 16)
    assert torch.equal(torch.get_rng_state(), before)


def test_padding_does_not_count():
    x, directions = normals(20, 3, WIDTH), projections(uniforms(4), WIDTH, 64)
    mask = all_of(x)
    mask[12:, 1] = False
    mask[:, 2] = False
    spoilt = x.masked_fill(~mask.unsqueeze(-1), 1e3).requires_grad_()
    value = sigreg(spoilt, mask, directions)
    parts = [
        sigreg(x[:, :1], all_of(x[:, :1]), directions),
        sigreg(x[:12, 1:2], mask[:12, 1:2], directions),
    ]
    torch.testing.assert_close(value, torch.stack(parts).mean())
    value.backward()
    assert not spoilt.grad[~mask].any()


def test_descending_it_makes_a_batch_normal():
    x = (uniforms(256, 1, 4) * 0.5 + 0.3).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for step in range(200):
        optimizer.zero_grad()
        value = sigreg(x, all_of(x), projections(uniforms(4, seed=step), 4, 64))
        value.backward()
        optimizer.step()
    # No further from normal than a normal sample is.
    assert value < 1.0
    assert x.detach().mean().abs() < 0.1
    assert x.detach().std() == pytest.approx(1.0, abs=0.1)
