"""Preconditioning and sampling of a diffusion model (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dreamgym.models.diamond.config import DiffusionConfig

HALF_LEVELS = 127.5
"""Half the distance between the darkest and the brightest of 256 levels."""


class Preconditioning(NamedTuple):
    """Factors around the network at some noise levels (N,); each is (N,).

    A frame x with noise y = x + n is denoised to `c_skip * y + c_out * network(c_in * y, c_noise)`,
    with the target `(x - c_skip * y) / c_out` of variance one at every level.
    """

    c_in: Tensor
    c_out: Tensor
    c_skip: Tensor
    c_noise: Tensor

    @classmethod
    def at(cls, sigma: Tensor, config: DiffusionConfig) -> Preconditioning:
        """Return the factors at noise levels sigma (N,), arXiv 2206.00364, table 1.

        As published for DIAMOND, the variance of the offsets is part of the level.
        """
        variance, of_data = sigma.square() + config.sigma_offset**2, config.sigma_data**2
        total = variance + of_data
        return cls(
            c_in=total.rsqrt(),
            c_out=(variance * of_data / total).sqrt(),
            c_skip=of_data / total,
            c_noise=variance.log() / 8,  # ln(level) / 4
        )


def noise_levels(config: DiffusionConfig) -> list[float]:
    """Return the levels between the steps of sampling, arXiv 2206.00364, equation 5.

    There are `denoising_steps` levels, from `sigma_max` down, and zero after them. A single step
    starts from `sigma_max`.
    """
    steps, power = config.denoising_steps, 1 / config.rho
    high, low = config.sigma_max**power, config.sigma_min**power
    shares = [step / max(1, steps - 1) for step in range(steps)]
    return [(high + share * (low - high)) ** config.rho for share in shares] + [0.0]


def sample(
    denoise: Callable[[Tensor, float], Tensor], start: Tensor, config: DiffusionConfig
) -> Tensor:
    """Integrate the probability flow from noise to a frame by Euler's method.

    arXiv 2206.00364, algorithm 1 of order one. DIAMOND's start noise has unit scale and not that of
    the first level, deliberately: in long dreams frames then drift less.

    Args:
        denoise: maps frames (B, ...) at a noise level to denoised ones.
        start: (B, ...) noise.
        config: noise levels.
    """
    x = start
    for level, following in pairwise(noise_levels(config)):
        x = x + (x - denoise(x, level)) * ((following - level) / level)
    return x


def to_network(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert frames of bytes to the range [-1, 1]."""
    return frames.to(dtype) / HALF_LEVELS - 1.0


def to_frames(pixels: Tensor) -> Tensor:
    """Convert pixels around [-1, 1] to bytes; the nearest of the 256 levels."""
    return levels(pixels).to(torch.uint8)


def quantised(pixels: Tensor) -> Tensor:
    """Return the pixels of `to_frames` in [-1, 1].

    The authors round down, which darkens a frame by half a level.
    """
    return levels(pixels) / HALF_LEVELS - 1.0


def levels(pixels: Tensor) -> Tensor:
    """Return the numbers from 0 to 255 of the levels nearest to pixels around [-1, 1]."""
    return ((pixels.clamp(-1.0, 1.0) + 1.0) * HALF_LEVELS).round()
