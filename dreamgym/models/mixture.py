"""Mixture densities: one Gaussian mixture for each dimension (Bishop 1994)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dreamgym.models.base import Temperature
from dreamgym.models.sampling import categorical, normal, per_row

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


class Mixture(NamedTuple):
    """One Gaussian mixture for each dimension; every leaf is (..., n, mixtures)."""

    logits: Tensor
    mean: Tensor
    log_sigma: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of `value` (..., n), summed over the dimensions: (...)."""
        standard = (value.unsqueeze(-1) - self.mean) * (-self.log_sigma).exp()
        component = -0.5 * standard.square() - self.log_sigma - HALF_LOG_TAU
        return torch.logsumexp(component + self.logits.log_softmax(-1), -1).sum(-1)

    def sample(self, choose: Tensor, spread: Tensor, temperature: Temperature) -> Tensor:
        """Draw from the mixture at a temperature (arXiv 1803.10122, section 3.2).

        Args:
            choose: (B, n) uniforms that pick the component.
            spread: (B, n) uniforms that pick the place within it.
            temperature: divides the logits, and its square root widens sigma.
        """
        tau = per_row(temperature, self.logits)
        index = categorical(self.logits / tau, choose).unsqueeze(-1)
        mean = self.mean.gather(-1, index).squeeze(-1)
        sigma = self.log_sigma.gather(-1, index).squeeze(-1).exp()
        return mean + sigma * per_row(temperature, sigma) ** 0.5 * normal(spread)
