"""The stochastic state of the RSSM: how its parameters are sampled and compared."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import Temperature
from dreamgym.models.masked import masked_mean
from dreamgym.models.rssm_config import RSSMConfig
from dreamgym.models.sampling import normal, per_row

SMALLEST_STD = 0.1


class Latent(Protocol):
    """A family of distributions over z.

    Attributes:
        parameters: numbers that a network gives for one distribution.
        size: width of z.
    """

    parameters: int
    size: int

    def sample(self, given: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """Draw z (B, size), differentiably, from given (B, parameters) and noise (B, stoch)."""
        ...

    def kl(self, given: Tensor, other: Tensor) -> Tensor:
        """KL divergence (...) of given (..., parameters) from other (..., parameters), in nats."""
        ...

    def divergences(self, given: Tensor, other: Tensor) -> Tensor:
        """The same by categorical, or by number: (..., stoch), which add up to it."""
        ...


class Categoricals:
    """One-hot categoricals with straight-through gradients (arXiv 2010.02193, section 2.1).

    Args:
        count: of the categoricals.
        classes: of each.
        unimix: share of the uniform distribution in each (arXiv 2301.04104).
    """

    def __init__(self, count: int, classes: int, unimix: float) -> None:
        self.shape, self.unimix = (count, classes), unimix
        self.parameters = self.size = count * classes

    def sample(self, given: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """See `Latent.sample`; the logits are divided by the temperature."""
        chances = self.chances(given)
        if isinstance(temperature, Tensor) or temperature != 1.0:
            log = self.log_chances(given)
            chances = (log / per_row(temperature, log)).softmax(-1)
        beyond = noise.unsqueeze(-1) >= chances.detach().cumsum(-1)[..., :-1]
        # True up to the chosen class and false from there on: its end is one-hot.
        steps = F.pad(beyond.to(chances.dtype), (1, 0), value=1.0)
        one_hot = steps - F.pad(steps[..., 1:], (0, 1))
        return (one_hot + (chances - chances.detach())).flatten(-2)

    def kl(self, given: Tensor, other: Tensor) -> Tensor:
        """See `Latent.kl`."""
        return self.divergences(given, other).sum(-1)

    def divergences(self, given: Tensor, other: Tensor) -> Tensor:
        """See `Latent.divergences`."""
        log = self.log_chances(given)
        return (log.exp() * (log - self.log_chances(other))).sum(-1)

    def chances(self, given: Tensor) -> Tensor:
        """Probabilities, (..., count, classes)."""
        plain = _full(given).unflatten(-1, self.shape).softmax(-1)
        return plain * (1.0 - self.unimix) + self.unimix / self.shape[-1] if self.unimix else plain

    def log_chances(self, given: Tensor) -> Tensor:
        """Their logarithms, (..., count, classes)."""
        if self.unimix:
            return self.chances(given).log()
        return _full(given).unflatten(-1, self.shape).log_softmax(-1)


class Gaussians:
    """Independent normal distributions (arXiv 1811.04551).

    Args:
        count: of the numbers in z.
    """

    def __init__(self, count: int) -> None:
        self.parameters, self.size = 2 * count, count

    def sample(self, given: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """See `Latent.sample`; the root of the temperature widens the spread."""
        mean, std = self.moments(given)
        return mean + std * per_row(temperature, std) ** 0.5 * normal(noise)

    def kl(self, given: Tensor, other: Tensor) -> Tensor:
        """See `Latent.kl`."""
        return self.divergences(given, other).sum(-1)

    def divergences(self, given: Tensor, other: Tensor) -> Tensor:
        """See `Latent.divergences`."""
        mean, std = self.moments(given)
        other_mean, other_std = self.moments(other)
        ratio, off = std / other_std, (mean - other_mean) / other_std
        return 0.5 * (ratio.square() + off.square() - 1.0) - ratio.log()

    def moments(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (..., count) each."""
        mean, raw = _full(given).chunk(2, -1)
        return mean, F.softplus(raw) + SMALLEST_STD


def latent(config: RSSMConfig) -> Latent:
    """The latent that a config asks for."""
    if config.classes:
        return Categoricals(config.stoch, config.classes, config.unimix)
    return Gaussians(config.stoch)


def free(divergence: Tensor, mask: Tensor, nats: float, of: str) -> Tensor:
    """The mean divergence of unmasked steps, of which some nats are free.

    Args:
        divergence: (B, L).
        mask: (B, L) bool.
        nats: below this there is nothing to gain.
        of: "step" for each step's own, "batch" for their mean.
    """
    if of == "batch":
        return masked_mean(divergence, mask).clamp(min=nats)
    return masked_mean(divergence.clamp(min=nats), mask)


def _full(given: Tensor) -> Tensor:
    """At least float32: in less, a distribution's tails are lost."""
    return given.to(torch.promote_types(given.dtype, torch.float32))
