"""Distributions against their definitions, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from dreamgym.models.nn.distributions import (
    Mixture,
    categorical,
    normal,
    polynomial_normal,
    quick_normal,
)


def a_mixture(rows: int = 6, seed: int = 0) -> Mixture:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 3, 5)
    return Mixture(
        *(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    )


def test_log_prob_is_the_mixture_density_summed_over_dimensions():
    mixture, value = a_mixture(), torch.linspace(-1, 1, 18, dtype=torch.float64).view(6, 3)
    weights = mixture.logits.exp() / mixture.logits.exp().sum(-1, keepdim=True)
    sigma = mixture.log_sigma.exp()
    bell = (-((value[..., None] - mixture.mean) ** 2) / (2 * sigma**2)).exp()
    density = (weights * bell / (sigma * math.sqrt(2 * math.pi))).sum(-1)
    torch.testing.assert_close(mixture.log_prob(value), density.log().sum(-1))


@pytest.mark.parametrize("tau", [0.3, 1.0, 1.5])
def test_samples_follow_the_tempered_mixture(tau):
    """arXiv 1803.10122, section 3.2: logits over tau, and sigma times the square root of tau."""
    draws = 20_000
    mixture = Mixture(*(leaf[:1, :1].expand(draws, 1, 5) for leaf in a_mixture(seed=1)))
    generator = torch.Generator().manual_seed(0)
    choose, spread = torch.rand(2, draws, 1, generator=generator, dtype=torch.float64)
    sample = mixture.sample(choose, spread, tau)[:, 0].numpy()
    weights = (mixture.logits[0, 0] / tau).softmax(-1).numpy()
    mean, sigma = mixture.mean[0, 0].numpy(), mixture.log_sigma[0, 0].exp().numpy() * tau**0.5
    cdf = lambda x: (weights * stats.norm.cdf(x[:, None], mean, sigma)).sum(-1)  # noqa: E731
    assert stats.kstest(sample, cdf).pvalue > 1e-4


def test_categorical_is_the_inverse_of_the_cumulative_distribution():
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    drawn = categorical(
        logits.expand(6, 3), torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-24])
    )
    assert drawn.tolist() == [0, 0, 1, 1, 2, 2]


def test_normal_is_finite_at_both_ends():
    ends = normal(torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert ends.isfinite().all()
    assert ends[1] == 0
    assert ends[0] < -5
    assert ends[2] > 5


@pytest.mark.parametrize("function", [quick_normal, polynomial_normal])
def test_quick_normals_are_accurate_to_float32_at_every_uniform(function):
    """All uniforms of 24 bits near both ends and every 101st between."""
    steps = torch.cat([torch.arange(1, 4096), torch.arange(4096, 2**24 - 4096, 101)])
    steps = torch.cat([steps, torch.arange(2**24 - 4096, 2**24)])
    exact = normal(steps.double() / 2**24)
    quick = function(steps.float() / 2**24).double()
    torch.testing.assert_close(quick, exact, rtol=5e-7, atol=5e-7)


def test_a_compiled_quick_normal_is_the_eager_one():
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    uniform[0], uniform[1] = 0.0, 1 - 2**-24
    torch._dynamo.reset()
    compiled = torch.compile(quick_normal, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(uniform), quick_normal(uniform), rtol=1e-6, atol=1e-6)
