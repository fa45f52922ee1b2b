"""SIGReg against the equations of arXiv 2511.08544 in float64, and on batches with known values."""

from __future__ import annotations

import pytest
import torch

from dreamgym.models.jepa.regularisers import random_directions, sigreg

BATCH, STEPS, WIDTH = 128, 3, 24


def uniforms(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def no_padding(embeddings: torch.Tensor) -> torch.Tensor:
    return torch.ones(embeddings.shape[:2], dtype=torch.bool)


def reference_statistic(embeddings: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """The published equations in float64, with the trapezoid rule over all of [-3, 3]."""
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
    directions = random_directions(uniforms(4), WIDTH, 200)
    value, expected = sigreg(x, no_padding(x), directions), reference_statistic(x, directions)
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)


def test_its_gradient_is_that_of_the_published_statistic():
    x, directions = normals(16, 2, 5), random_directions(uniforms(4), 5, 300)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    sigreg(one, no_padding(one), directions).backward()
    reference_statistic(other, directions).backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


def test_values_are_those_of_the_authors_code():
    """Measured with it, batch 128: 1.07 for normal embeddings, 51.5 for collapsed ones."""
    directions = random_directions(uniforms(4), 192)
    normal = torch.stack(
        [
            sigreg(x, no_padding(x), directions)
            for x in (normals(128, 4, 192, seed=s) for s in range(8))
        ]
    )
    assert normal.mean() == pytest.approx(1.05, abs=0.04)
    same = torch.zeros(128, 4, 192)
    assert sigreg(same, no_padding(same), directions) == pytest.approx(51.46, abs=0.1)


def test_directions_are_unit_vectors_determined_by_the_noise():
    noise = uniforms(8, 3, 2)
    directions = random_directions(noise, 192)
    assert directions.shape == (192, 1024)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(1024))
    assert torch.equal(directions, random_directions(noise.clone(), 192))
    assert not torch.equal(directions, random_directions(uniforms(8, 3, 2, seed=1), 192))
    # Uniform on the sphere: mean zero, covariance the identity divided by the dimension.
    many = random_directions(noise, 6, 50_000)
    torch.testing.assert_close(many.mean(1), torch.zeros(6), atol=0.01, rtol=0)
    torch.testing.assert_close(many @ many.T / 50_000 * 6, torch.eye(6), atol=0.03, rtol=0)


def test_no_global_generator_is_used():
    before = torch.get_rng_state()
    random_directions(uniforms(4), 16)
    assert torch.equal(torch.get_rng_state(), before)


def test_padding_is_ignored():
    x, directions = normals(20, 3, WIDTH), random_directions(uniforms(4), WIDTH, 64)
    mask = no_padding(x)
    mask[12:, 1] = False
    mask[:, 2] = False
    padded = x.masked_fill(~mask.unsqueeze(-1), 1e3).requires_grad_()
    value = sigreg(padded, mask, directions)
    parts = [
        sigreg(x[:, :1], no_padding(x[:, :1]), directions),
        sigreg(x[:12, 1:2], mask[:12, 1:2], directions),
    ]
    torch.testing.assert_close(value, torch.stack(parts).mean())
    value.backward()
    assert not padded.grad[~mask].any()


def test_minimising_it_makes_a_batch_normal():
    x = (uniforms(256, 1, 4) * 0.5 + 0.3).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for step in range(200):
        optimizer.zero_grad()
        value = sigreg(x, no_padding(x), random_directions(uniforms(4, seed=step), 4, 64))
        value.backward()
        optimizer.step()
    # At least as close to normal as a sample of a normal distribution.
    assert value < 1.0
    assert x.detach().mean().abs() < 0.1
    assert x.detach().std() == pytest.approx(1.0, abs=0.1)
