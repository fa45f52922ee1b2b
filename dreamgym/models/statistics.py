"""What a model's normalisers are fitted to: moments and ranges of the training episodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.models.observations import WHOLE

SMALLEST_SPREAD = 1e-6

"""Channels that vary less than this are taken as constant: their spread is set to one."""


class Moments(NamedTuple):
    """Moments of one part of the observations, in its own units; all (n,) float32.

    Attributes:
        mean: of every row.
        std: of every row.
        low: the least value.
        high: the greatest value.
        delta_std: root mean square of the change from one observation to the next.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    delta_std: Tensor


class Statistics(NamedTuple):
    """Moments of training data in the real environment's units, float32.

    Attributes:
        observation: by key of a Dict space, or `WHOLE`; images have none.
        reward_mean: scalar.
        reward_std: scalar.
        worst_return: scalar, the lowest sum of rewards from any step to its episode's end, or
            zero where even the lowest is above it.
        action: of the numbers of a Box's single actions, before any grouping into blocks; None
            where actions are choices, or were not measured.
    """

    observation: dict[str, Moments]
    reward_mean: Tensor
    reward_std: Tensor
    worst_return: Tensor
    action: Moments | None = None

    @property
    def vector(self) -> Moments:
        """Of observations that are one vector."""
        return self.observation[WHOLE]


class _Sums:
    """Sums over rows of one part, in float64."""

    def __init__(self, first: NDArray) -> None:
        # Taken off before squaring: channels far from zero keep their digits.
        self.shift = np.asarray(first, dtype=np.float64).ravel()
        self.rows = self.steps = 0
        self.total = np.zeros_like(self.shift)
        self.square, self.delta = self.total.copy(), self.total.copy()
        self.low = np.full_like(self.shift, np.inf)
        self.high = -self.low

    def add(self, observations: NDArray) -> None:
        x = observations.reshape(len(observations), -1).astype(np.float64)
        self.rows, self.steps = self.rows + len(x), self.steps + len(x) - 1
        self.total += (x - self.shift).sum(0)
        self.square += ((x - self.shift) ** 2).sum(0)
        self.delta += (np.diff(x, axis=0) ** 2).sum(0)
        self.low, self.high = np.minimum(self.low, x.min(0)), np.maximum(self.high, x.max(0))

    def moments(self) -> Moments:
        mean = self.total / self.rows
        return Moments(
            mean=_tensor(mean + self.shift),
            std=_spread(self.square / self.rows - mean**2),
            low=_tensor(self.low),
            high=_tensor(self.high),
            delta_std=_spread(self.delta / max(1, self.steps)),
        )


def measure_statistics(
    episodes: Iterable[tuple[Any, NDArray]], actions: Iterable[NDArray] = ()
) -> Statistics:
    """Statistics over whole episodes, in one pass, summed in float64.

    Args:
        episodes: pairs of observations, (T + 1, ...) or a dict of such, and rewards (T,).
        actions: (T, ...) of each episode, of the environment itself; whole numbers are choices and
            have no moments.

    Raises:
        ValueError: there are no episodes.
    """
    parts: dict[str, _Sums] = {}
    rewards = _Sums(np.zeros(1))
    worst = 0.0
    for observations, paid in episodes:
        by_key = observations if isinstance(observations, dict) else {WHOLE: observations}
        for key, values in by_key.items():
            if values.dtype == np.uint8:
                continue  # images need no moments: their range is known
            if key not in parts:
                parts[key] = _Sums(values[0])
            parts[key].add(values)
        rewards.add(paid[:, None])
        to_go = np.cumsum(paid[::-1].astype(np.float64))
        worst = min(worst, float(to_go.min(initial=0.0)))
    if not rewards.rows:
        raise ValueError("no episodes to fit the normalisers on; give at least one")
    reward = rewards.moments()
    return Statistics(
        observation={key: sums.moments() for key, sums in parts.items()},
        reward_mean=reward.mean[0],
        reward_std=reward.std[0],
        worst_return=_tensor(worst),
        action=_of_actions(actions),
    )


def _of_actions(episodes: Iterable[NDArray]) -> Moments | None:
    sums: _Sums | None = None
    for actions in episodes:
        if actions.dtype.kind != "f":
            return None
        sums = sums or _Sums(actions[0])
        sums.add(actions)
    return sums.moments() if sums else None


def _tensor(value: NDArray | float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _spread(variance: NDArray) -> Tensor:
    std = np.sqrt(np.maximum(variance, 0.0))
    return _tensor(np.where(std < SMALLEST_SPREAD, 1.0, std))
