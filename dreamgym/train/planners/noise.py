"""The noise of planners: a function of row, iteration and candidate, never of the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dreamgym.dream.noise import mix_in
from dreamgym.models.splitmix import uniforms

TRUNCATION = 2.0
"""Standard deviations at which PETS truncates its normal distribution."""

_BELOW = 0.5 * math.erfc(TRUNCATION / math.sqrt(2))


def keyed(keys: Tensor, number: int) -> Tensor:
    """Return keys of another purpose, iteration or step: int64 of the shape of `keys`."""
    return mix_in(keys, torch.full_like(keys, number))


def candidate_uniforms(keys: Tensor, count: int, lanes: int) -> Tensor:
    """Return uniforms in [0, 1) for the candidates of each row.

    Args:
        keys: (B,) int64, one for each row.
        count: number of candidates; the first ones do not depend on it.
        lanes: uniforms of a candidate.

    Returns:
        (B, count, lanes) float32.
    """
    index = torch.arange(count, device=keys.device)
    return uniforms(mix_in(keys.unsqueeze(1), index), lanes)


def normals(keys: Tensor, count: int, shape: tuple[int, int], *, truncated: bool = False) -> Tensor:
    """Return standard normal numbers for the candidates of each row.

    Args:
        keys: (B,) int64.
        count: number of candidates.
        shape: (H, A), steps and numbers of an action.
        truncated: whether the distribution is truncated at two standard deviations.

    Returns:
        (B, count, H, A) float32.
    """
    uniform = candidate_uniforms(keys, count, math.prod(shape))
    if truncated:
        uniform = _BELOW + (1 - 2 * _BELOW) * uniform
    # inside (0, 1), and of 24 bits, so that the result is finite
    uniform = uniform.clamp(2.0**-25, 1.0 - 2.0**-24)
    return (torch.erfinv(2 * uniform - 1) * math.sqrt(2)).unflatten(-1, shape)


def coloured_normals(keys: Tensor, count: int, shape: tuple[int, int], beta: float) -> Tensor:
    """Return normal numbers whose power spectrum over the steps falls with frequency^-beta.

    Timmer and Koenig (1995), "On generating power law noise", as iCEM uses it. Variances are one.

    Args:
        keys: (B,) int64.
        count: number of candidates.
        shape: (H, A), steps and numbers of an action.
        beta: exponent of the spectrum; 0 is white noise.

    Returns:
        (B, count, H, A) float32.
    """
    steps, size = shape
    if beta == 0 or steps < 2:
        return normals(keys, count, shape)
    frequency = torch.fft.rfftfreq(steps, device=keys.device)
    frequency[0] = frequency[1]  # no power at frequency zero would be infinite
    amplitude = frequency ** (-beta / 2)
    parts = normals(keys, count, (2 * len(frequency), size))
    real, imaginary = (amplitude.unsqueeze(-1) * part for part in parts.chunk(2, -2))
    # A real signal has real coefficients at frequency zero and, if it is even, at the highest.
    imaginary[..., 0, :] = 0.0
    real[..., 0, :] *= math.sqrt(2)
    weight = torch.full_like(amplitude, 2.0)
    weight[0] = 1.0
    if steps % 2 == 0:
        imaginary[..., -1, :] = 0.0
        real[..., -1, :] *= math.sqrt(2)
        weight[-1] = 1.0
    # Of each coefficient, real and imaginary part have the variance amplitude^2.
    variance = 2 * (weight * amplitude.square()).sum() / steps**2
    signal = torch.fft.irfft(torch.complex(real, imaginary), n=steps, dim=-2)
    return signal / variance.sqrt()
