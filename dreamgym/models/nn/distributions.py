"""Sampling from uniform numbers, so that a step stays a pure function of its noise."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamgym.models.base import Temperature

SMALLEST_UNIFORM = 2.0**-25
"""Half the spacing of 24-bit uniforms: keeps the inverse of the normal CDF finite."""

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)

LARGEST_EXPONENT = 20.0
"""Largest two-hot bin, before symexp."""

_GILES_CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_GILES_TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)
"""Coefficients of Giles' polynomials (see `polynomial_normal`), highest power first."""


def normal(uniform: Tensor) -> Tensor:
    """Return standard normal numbers by the inverse CDF; same shape."""
    return torch.special.ndtri(uniform.clamp(SMALLEST_UNIFORM, 1.0 - SMALLEST_UNIFORM * 2))


def quick_normal(uniform: Tensor) -> Tensor:
    """Return standard normal numbers to float32 accuracy, in a fifth of the time of `normal`.

    In a compiled graph it is a polynomial: Inductor cannot vectorise `erfinv`, and a loop that
    calls it is neither vectorised nor fused.
    """
    clamped = uniform.clamp(SMALLEST_UNIFORM, 1.0 - SMALLEST_UNIFORM * 2)
    if torch.compiler.is_compiling():
        return polynomial_normal(clamped)
    return torch.erfinv(2 * clamped - 1) * math.sqrt(2)


def polynomial_normal(uniform: Tensor) -> Tensor:
    """Return standard normal numbers by Giles' approximation of erfinv, to float32 accuracy.

    M. Giles (2012), "Approximating the erfinv function", single precision: two polynomials in
    w = -log(1 - x^2), with x = 2 u - 1.

    Args:
        uniform: u, inside (0, 1).
    """
    # 1 - x^2 is computed as 4 u (1 - u), which keeps its digits at both ends.
    w = -(4.0 * uniform * (1.0 - uniform)).log()
    centre = _horner(_GILES_CENTRE, w - 2.5)
    tail = _horner(_GILES_TAIL, w.clamp(min=5.0).sqrt() - 3.0)
    return torch.where(w < 5.0, centre, tail) * (2.0 * uniform - 1.0) * math.sqrt(2)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Evaluate a polynomial by Horner's rule."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def categorical(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw a class by the inverse CDF.

    Args:
        logits: (..., K), not necessarily normalised.
        uniform: (...) uniforms in [0, 1), one for each draw.

    Returns:
        (...) int64 in [0, K).
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    # The last sum is left out: by rounding it may be below one, and there is no class after it.
    return (uniform.unsqueeze(-1) >= cumulative[..., :-1]).sum(-1)


def per_row(temperature: Temperature, like: Tensor) -> Temperature:
    """Reshape a temperature (B,) to broadcast against `like` (B, ...); numbers pass through."""
    if isinstance(temperature, Tensor) and temperature.ndim:
        return temperature.view(-1, *[1] * (like.ndim - 1))
    return temperature


def is_one(temperature: Temperature) -> bool:
    """Return whether a temperature is the number one, which changes nothing."""
    return not isinstance(temperature, Tensor) and temperature == 1.0


class Mixture(NamedTuple):
    """A Gaussian mixture for each of n dimensions; every leaf is (..., n, mixtures)."""

    logits: Tensor
    mean: Tensor
    log_sigma: Tensor

    def log_prob(self, value: Tensor, weight: Tensor | float = 1.0) -> Tensor:
        """Return the log density of `value` (..., n), summed over the dimensions: (...).

        Args:
            value: (..., n).
            weight: (n,) weight of each dimension in the sum.
        """
        standard = (value.unsqueeze(-1) - self.mean) * (-self.log_sigma).exp()
        component = -0.5 * standard.square() - self.log_sigma - HALF_LOG_TAU
        log_density = torch.logsumexp(component + self.logits.log_softmax(-1), -1)
        return (log_density * weight).sum(-1)

    def sample(self, choose: Tensor, spread: Tensor, temperature: Temperature) -> Tensor:
        """Draw from the mixture at a temperature (arXiv 1803.10122, section 3.2).

        Args:
            choose: (B, n) uniforms that select the component.
            spread: (B, n) uniforms that are mapped to the component's Gaussian.
            temperature: divides the logits; its square root multiplies sigma.
        """
        tau = per_row(temperature, self.logits)
        index = categorical(self.logits / tau, choose).unsqueeze(-1)
        mean = self.mean.gather(-1, index).squeeze(-1)
        sigma = self.log_sigma.gather(-1, index).squeeze(-1).exp()
        return mean + sigma * per_row(temperature, sigma) ** 0.5 * normal(spread)


def symlog(x: Tensor) -> Tensor:
    """Return sign(x) ln(1 + |x|) (DreamerV3, arXiv 2301.04104, equation 9); same shape."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Return sign(x) (exp|x| - 1), the inverse of symlog; same shape."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


class TwoHot(nn.Module):
    """A number as a categorical over fixed bins, the symexp of evenly spaced numbers.

    DreamerV3, arXiv 2301.04104, equations 9 to 11. With `in_symlog` bins and mean are those of the
    number's symlog, as in the first version of that paper, in STORM and in TD-MPC2.

    Args:
        count: number of bins, odd.
        limit: symlog of the largest bin.
        in_symlog: whether weights and mean are computed before the symexp, not after it.
    """

    bins: Tensor

    def __init__(
        self, count: int, limit: float = LARGEST_EXPONENT, *, in_symlog: bool = False
    ) -> None:
        super().__init__()
        self.in_symlog = in_symlog
        # One half and its mirror image, so that opposite bins cancel exactly.
        half = torch.linspace(0.0, limit, count // 2 + 1, dtype=torch.float64)
        half = half if in_symlog else symexp(half)
        bins = torch.cat([-half.flip(0)[:-1], half]).float()
        self.register_buffer("bins", bins, persistent=False)

    def mean(self, logits: Tensor) -> Tensor:
        """Return the expected number (...); exactly zero for equal logits.

        Args:
            logits: (..., count).
        """
        probabilities = logits.softmax(-1)
        middle = len(self.bins) // 2
        # Opposite bins are paired first; otherwise the rounding of the largest would remain.
        excess = probabilities[..., middle + 1 :] - probabilities[..., :middle].flip(-1)
        mean = (excess * self.bins[middle + 1 :]).sum(-1)
        return symexp(mean) if self.in_symlog else mean

    def encode(self, value: Tensor) -> Tensor:
        """Return weights (..., count) on the two bins around each value, with the value as mean."""
        value = symlog(value) if self.in_symlog else value
        value = value.clamp(self.bins[0], self.bins[-1])
        last = len(self.bins) - 1
        above = torch.searchsorted(self.bins, value.contiguous()).clamp(1, last)
        low, high = self.bins[above - 1], self.bins[above]
        share = ((value - low) / (high - low)).unsqueeze(-1)
        index = torch.arange(last + 1, device=value.device)
        above = above.unsqueeze(-1)
        return torch.where(index == above, share, 0.0) + torch.where(
            index == above - 1, 1.0 - share, 0.0
        )

    def loss(self, logits: Tensor, value: Tensor) -> Tensor:
        """Return the cross-entropy with the two-hot value, equation 11; (...).

        Args:
            logits: (..., count).
            value: (...) finite.
        """
        return -(self.encode(value) * logits.log_softmax(-1)).sum(-1)
