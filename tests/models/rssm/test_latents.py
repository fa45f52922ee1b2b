"""The latent distributions of the RSSM against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from dreamgym.models.nn.latents import Categoricals, Gaussians, kl_loss
from dreamgym.models.reduction import masked_mean

DRAWS = 20_000


def uniforms(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def parameters(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def mixed(logits: np.ndarray, unimix: float) -> np.ndarray:
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return (1 - unimix) * probabilities + unimix / logits.shape[-1]


@pytest.mark.parametrize("tau", [0.5, 1.0, torch.tensor(1.7, dtype=torch.float64)])
def test_categoricals_draw_one_hots_from_the_tempered_distribution(tau):
    given = parameters(1, 3 * 5)
    latent = Categoricals(3, 5, 0.01)
    z = latent.sample(given.expand(DRAWS, -1), uniforms(DRAWS, 3), tau).unflatten(-1, (3, 5))
    assert ((z == 0) | (z == 1)).all()
    assert (z.sum(-1) == 1).all()
    probabilities = mixed(given.view(3, 5).numpy(), 0.01) ** (1 / float(tau))
    probabilities /= probabilities.sum(-1, keepdims=True)
    for seen, expected in zip(z.sum(0).numpy(), probabilities, strict=True):
        assert stats.chisquare(seen, expected * DRAWS).pvalue > 1e-4


def test_a_categorical_is_the_inverse_of_its_cumulative_distribution():
    given = torch.tensor([0.2, 0.5, 0.3]).log().expand(6, 3)
    noise = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-24]).unsqueeze(-1)
    z = Categoricals(1, 3, 0.0).sample(given, noise)
    assert z.argmax(-1).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("tau", [1.0, 0.6])
def test_the_gradient_of_a_categorical_is_that_of_its_probabilities(tau):
    given = parameters(4, 3 * 5).requires_grad_()
    latent, weights = Categoricals(3, 5, 0.01), parameters(4, 15, seed=2)
    (latent.sample(given, uniforms(4, 3), tau) * weights).sum().backward()
    plain = given.detach().clone().requires_grad_()
    probabilities = plain.view(4, 3, 5).softmax(-1) * 0.99 + 0.01 / 5
    probabilities = probabilities ** (1 / tau)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    (probabilities.flatten(-2) * weights).sum().backward()
    torch.testing.assert_close(given.grad, plain.grad)


@pytest.mark.parametrize("tau", [0.25, 1.0, 2.0])
def test_gaussians_draw_with_tau_times_the_variance(tau):
    given = parameters(1, 2 * 3)
    z = Gaussians(3).sample(given.expand(DRAWS, -1), uniforms(DRAWS, 3), tau).numpy()
    mean, raw = given[0, :3].numpy(), given[0, 3:].numpy()
    std = (np.log1p(np.exp(raw)) + 0.1) * tau**0.5
    for k in range(3):
        assert stats.kstest(z[:, k], stats.norm(mean[k], std[k]).cdf).pvalue > 1e-4


def test_kl_of_categoricals_is_the_sum_over_classes_and_categoricals():
    one, other = parameters(7, 15), parameters(7, 15, seed=2)
    p, q = (mixed(x.view(7, 3, 5).numpy(), 0.01) for x in (one, other))
    expected = (p * (np.log(p) - np.log(q))).sum((-2, -1))
    np.testing.assert_allclose(Categoricals(3, 5, 0.01).kl(one, other).numpy(), expected)


def test_kl_without_uniform_share_stays_finite_where_a_class_is_impossible():
    one, other = torch.tensor([[0.0, -200.0]]), torch.tensor([[0.0, -300.0]])
    assert Categoricals(1, 2, 0.0).kl(one, other).isfinite().all()


def test_kl_of_gaussians_is_the_closed_form():
    one, other = parameters(7, 6), parameters(7, 6, seed=2)
    expected = torch.distributions.kl_divergence(
        *(
            torch.distributions.Normal(x[:, :3], torch.nn.functional.softplus(x[:, 3:]) + 0.1)
            for x in (one, other)
        )
    )
    torch.testing.assert_close(Gaussians(3).kl(one, other), expected.sum(-1))


def test_free_nats_apply_to_each_step_or_to_the_mean():
    divergence = torch.tensor([[0.5, 3.0], [2.0, 99.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert kl_loss(divergence, mask, 1.0, "step") == (1 + 3 + 2) / 3
    assert kl_loss(divergence, mask, 1.0, "batch") == pytest.approx((0.5 + 3 + 2) / 3)
    assert kl_loss(divergence, mask, 4.0, "batch") == 4


def test_masked_values_do_not_count_even_if_not_finite():
    values = torch.tensor([[1.0, float("nan")], [float("inf"), 3.0]])
    assert masked_mean(values, torch.tensor([[True, False], [False, True]])) == 2
    assert masked_mean(values, torch.zeros(2, 2, dtype=torch.bool)) == 0
