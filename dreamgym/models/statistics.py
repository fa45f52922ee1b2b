"""What a model's normalisers are fitted to: moments and ranges of the training episodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SMALLEST_SPREAD = 1e-6
"""Channels that vary less than this are taken as constant: their spread is set to one."""


class Statistics(NamedTuple):
    """Moments of training data in the real environment's units, float32.

    Attributes:
        mean, std, low, high: (n,) of the observations.
        delta_std: (n,) root mean square of the change from one observation to the next.
        reward_mean, reward_std: scalars.
        worst_return: scalar, the lowest sum of rewards from any step to its episode's end, or
            zero where even the lowest is above it.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    delta_std: Tensor
    reward_mean: Tensor
    reward_std: Tensor
    worst_return: Tensor


def _spread(variance: NDArray[np.float64]) -> Tensor:
    std = np.sqrt(np.maximum(variance, 0.0))
    return torch.tensor(np.where(std < SMALLEST_SPREAD, 1.0, std), dtype=torch.float32)


def measure(episodes: Iterable[tuple[NDArray, NDArray]]) -> Statistics:
    """Statistics over whole episodes, in one pass, summed in float64.

    Args:
        episodes: pairs of observations (T + 1, n) and rewards (T,).

    Raises:
        ValueError: there are no episodes.
    """
    count, steps = 0, 0
    total = square = delta = np.float64(0.0)
    reward_total = reward_square = np.float64(0.0)
    low, high, worst = np.float64(np.inf), np.float64(-np.inf), 0.0
    shift: NDArray | None = None
    for observations, rewards in episodes:
        x = observations.reshape(len(observations), -1).astype(np.float64)
        r = rewards.astype(np.float64)
        # The first row is taken off before squaring: channels far from zero keep their digits.
        shift = x[0] if shift is None else shift
        count, steps = count + len(x), steps + len(r)
        total, square = total + (x - shift).sum(0), square + ((x - shift) ** 2).sum(0)
        delta = delta + (np.diff(x, axis=0) ** 2).sum(0)
        low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
        worst = min(worst, float(np.cumsum(r[::-1]).min(initial=0.0)))
        reward_total, reward_square = reward_total + r.sum(), reward_square + (r**2).sum()
    if shift is None:
        raise ValueError("no episodes to fit the normalisers on; give at least one")
    mean, reward_mean = total / count, reward_total / steps
    as_tensor = lambda array: torch.tensor(array, dtype=torch.float32)  # noqa: E731
    return Statistics(
        mean=as_tensor(mean + shift),
        std=_spread(np.asarray(square / count - mean**2)),
        low=as_tensor(low),
        high=as_tensor(high),
        delta_std=_spread(np.asarray(delta / steps)),
        reward_mean=as_tensor(reward_mean),
        reward_std=_spread(np.asarray(reward_square / steps - reward_mean**2)),
        worst_return=as_tensor(worst),
    )
