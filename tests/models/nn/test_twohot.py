"""Symlog and two-hot against arXiv 2301.04104, equations 9 to 11, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamgym.models.nn.distributions import TwoHot, symexp, symlog

VALUES = np.array([-4e8, -1234.5, -16.27, -1.0, -1e-3, 0.0, 0.01, 0.5, 1.0, 3.0, 99.9, 1e6])
BINS = np.sign(np.linspace(-20, 20, 255)) * (np.exp(np.abs(np.linspace(-20, 20, 255))) - 1)


def as_two_hot(value: float) -> np.ndarray:
    """Return the weights of equation 10, on the two nearest bins."""
    weights = np.zeros(255)
    k = int((value > BINS).sum())  # bins below the value
    if BINS[k] == value:
        weights[k] = 1.0
        return weights
    gap = abs(BINS[k] - BINS[k - 1])
    weights[k - 1] = abs(BINS[k] - value) / gap
    weights[k] = abs(BINS[k - 1] - value) / gap
    return weights


def test_symlog_and_symexp_are_the_equations_and_each_others_inverse():
    x = torch.from_numpy(VALUES)
    expected = np.sign(VALUES) * np.log(np.abs(VALUES) + 1)
    np.testing.assert_allclose(symlog(x).numpy(), expected)
    torch.testing.assert_close(symexp(symlog(x)), x)


def test_the_target_is_two_hot_with_the_value_as_its_mean():
    head = TwoHot(255).double()
    head.bins.copy_(torch.from_numpy(BINS))
    weights = head.encode(torch.from_numpy(VALUES)).numpy()
    np.testing.assert_allclose(weights, [as_two_hot(v) for v in VALUES], atol=1e-9)
    np.testing.assert_allclose(weights @ BINS, VALUES, rtol=1e-9, atol=1e-9)
    assert ((weights > 0).sum(-1) <= 2).all()


def test_the_loss_is_the_cross_entropy_with_the_two_hot_target():
    logits = torch.randn(len(VALUES), 255, generator=torch.Generator().manual_seed(0))
    log = logits.double().numpy()
    log = log - np.log(np.exp(log).sum(-1, keepdims=True))
    expected = [-(as_two_hot(v) * row).sum() for v, row in zip(VALUES, log, strict=True)]
    got = TwoHot(255).loss(logits, torch.tensor(VALUES, dtype=torch.float32))
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5)


def test_equal_logits_give_exactly_zero_and_one_certain_bin_gives_its_value():
    head = TwoHot(255)
    assert (head.mean(torch.zeros(3, 255)) == 0).all()
    certain = torch.full((2, 255), -1e9)
    certain[0, 140] = certain[1, 100] = 0
    np.testing.assert_allclose(head.mean(certain).numpy(), BINS[[140, 100]], rtol=1e-5)


def test_values_beyond_the_bins_are_clamped():
    head = TwoHot(255)
    weights = head.encode(torch.tensor([-1e12, 1e12]))
    assert weights[0, 0] == 1
    assert weights[1, -1] == 1


@pytest.mark.parametrize("count", [3, 41])
def test_fewer_bins_span_the_same_range(count):
    assert TwoHot(count).bins[[0, count // 2, -1]].tolist() == pytest.approx(
        [BINS[0], 0, BINS[-1]], rel=1e-6
    )
