"""Distributions over stochastic latents, sampled from uniforms, and their KL divergences."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import Temperature
from dreamgym.models.nn.distributions import is_one, normal, per_row
from dreamgym.models.nn.layers import at_least_float32
from dreamgym.models.nn.objective import FreeNatsOf
from dreamgym.models.reduction import masked_mean

MAX_CLASSES = 256
"""Classes of a categorical that fit into a byte of a state."""

MIN_STD = 0.1
"""Smallest standard deviation of a Gaussian latent."""


class Latent(Protocol):
    """A family of distributions over z.

    Attributes:
        parameters: number of parameters of one distribution.
        size: width of z.
    """

    parameters: int
    size: int

    def sample(self, parameters: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """Draw z (B, size), differentiably.

        Args:
            parameters: (B, parameters).
            noise: (B, stoch) uniforms.
            temperature: a number or (B,).
        """
        ...

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return the KL divergence (...) from `other`, in nats; both are (..., parameters)."""
        ...

    def divergences(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return the terms (..., stoch) of `kl`, one for each categorical or dimension."""
        ...


class Categoricals:
    """One-hot categoricals with straight-through gradients (arXiv 2010.02193, section 2.1).

    Args:
        count: number of categoricals.
        classes: classes of each.
        unimix: share of the uniform distribution in each (arXiv 2301.04104).
    """

    def __init__(self, count: int, classes: int, unimix: float) -> None:
        self.shape, self.unimix = (count, classes), unimix
        self.parameters = self.size = count * classes

    def sample(self, parameters: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """See `Latent.sample`; the logits are divided by the temperature."""
        probabilities = self.tempered(parameters, temperature)
        beyond = _beyond(probabilities, noise)
        # One up to the chosen class and zero after it; the difference to the next is one-hot.
        steps = F.pad(beyond.to(probabilities.dtype), (1, 0), value=1.0)
        one_hot = steps - F.pad(steps[..., 1:], (0, 1))
        return (one_hot + (probabilities - probabilities.detach())).flatten(-2)

    def draw(self, parameters: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """Return the classes (..., count) int64 that `sample` draws."""
        return _beyond(self.tempered(parameters, temperature), noise).sum(-1)

    def mode(self, parameters: Tensor) -> Tensor:
        """Return the most probable classes (..., count) int64."""
        return parameters.unflatten(-1, self.shape).argmax(-1)

    def straight_through(self, parameters: Tensor, classes: Tensor) -> Tensor:
        """Return z (..., size) for classes (..., count), with the gradient of `sample`."""
        probabilities = self.probabilities(parameters).flatten(-2)
        return self.one_hot(classes) + (probabilities - probabilities.detach())

    def one_hot(self, classes: Tensor) -> Tensor:
        """Return z (..., size) float for classes (..., count)."""
        every = torch.arange(self.shape[1], dtype=classes.dtype, device=classes.device)
        return torch.eq(classes.unsqueeze(-1), every).flatten(-2).float()

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """See `Latent.kl`."""
        return self.divergences(parameters, other).sum(-1)

    def divergences(self, parameters: Tensor, other: Tensor) -> Tensor:
        """See `Latent.divergences`."""
        log = self.log_probabilities(parameters)
        return (log.exp() * (log - self.log_probabilities(other))).sum(-1)

    def tempered(self, parameters: Tensor, temperature: Temperature) -> Tensor:
        """Return the probabilities (..., count, classes) at a temperature."""
        if is_one(temperature):
            return self.probabilities(parameters)
        log = self.log_probabilities(parameters)
        return (log / per_row(temperature, log)).softmax(-1)

    def probabilities(self, parameters: Tensor) -> Tensor:
        """Return the probabilities, (..., count, classes)."""
        softmax = at_least_float32(parameters).unflatten(-1, self.shape).softmax(-1)
        if not self.unimix:
            return softmax
        return softmax * (1.0 - self.unimix) + self.unimix / self.shape[-1]

    def log_probabilities(self, parameters: Tensor) -> Tensor:
        """Return the log probabilities, (..., count, classes)."""
        if self.unimix:
            return self.probabilities(parameters).log()
        return at_least_float32(parameters).unflatten(-1, self.shape).log_softmax(-1)


def _beyond(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Return where (..., count, classes - 1) uniforms (..., count) lie beyond a class."""
    return noise.unsqueeze(-1) >= probabilities.detach().cumsum(-1)[..., :-1]


class Gaussians:
    """Independent normal distributions (arXiv 1811.04551).

    Args:
        count: number of dimensions of z.
    """

    def __init__(self, count: int) -> None:
        self.parameters, self.size = 2 * count, count

    def sample(self, parameters: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """See `Latent.sample`; the variance is multiplied by the temperature."""
        mean, std = self.moments(parameters)
        return mean + std * per_row(temperature, std) ** 0.5 * normal(noise)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """See `Latent.kl`."""
        return self.divergences(parameters, other).sum(-1)

    def divergences(self, parameters: Tensor, other: Tensor) -> Tensor:
        """See `Latent.divergences`."""
        mean, std = self.moments(parameters)
        other_mean, other_std = self.moments(other)
        ratio, difference = std / other_std, (mean - other_mean) / other_std
        return 0.5 * (ratio.square() + difference.square() - 1.0) - ratio.log()

    def moments(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, (..., count) each."""
        mean, raw = at_least_float32(parameters).chunk(2, -1)
        return mean, F.softplus(raw) + MIN_STD


def kl_loss(divergence: Tensor, mask: Tensor, free_nats: float, free_nats_of: FreeNatsOf) -> Tensor:
    """Return the mean divergence of unmasked steps, with free nats.

    Args:
        divergence: (B, L).
        mask: (B, L) bool.
        free_nats: value below which the loss is constant.
        free_nats_of: "step" to apply them to each step, "batch" to the mean over steps.
    """
    if free_nats_of == "batch":
        return masked_mean(divergence, mask).clamp(min=free_nats)
    return masked_mean(divergence.clamp(min=free_nats), mask)
