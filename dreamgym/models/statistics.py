"""Moments and ranges of the training episodes, to which models fit their normalisers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.models.observations import WHOLE

MIN_STD = 1e-6
"""Channels with a smaller standard deviation count as constant; their spread is set to one."""


class Moments(NamedTuple):
    """Moments of one part of the observations, in its own units; all (n,) float32.

    Attributes:
        mean: mean over all rows.
        std: standard deviation over all rows.
        low: smallest value.
        high: largest value.
        delta_std: root mean square of the change from one row to the next.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    delta_std: Tensor


class Statistics(NamedTuple):
    """Moments of training data in the real environment's units, float32.

    Attributes:
        observation: moments of each part, by key of a Dict space or `WHOLE`; images have none.
        reward_mean: () mean reward.
        reward_std: () standard deviation of the rewards.
        worst_return: () lowest return from any step to its episode's end, and at most zero.
        action: moments of single Box actions, before any grouping into blocks; None if actions are
            discrete, or were not measured.
    """

    observation: dict[str, Moments]
    reward_mean: Tensor
    reward_std: Tensor
    worst_return: Tensor
    action: Moments | None = None

    @property
    def vector(self) -> Moments:
        """Moments of observations that are one vector."""
        return self.observation[WHOLE]


class _Sums:
    """Running sums over the rows of one part, in float64."""

    def __init__(self, first: NDArray) -> None:
        # Subtracted before squaring, so that channels far from zero keep their digits.
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
            std=_std(self.square / self.rows - mean**2),
            low=_tensor(self.low),
            high=_tensor(self.high),
            delta_std=_std(self.delta / max(1, self.steps)),
        )


def measure_statistics(
    episodes: Iterable[tuple[Any, NDArray]],
    actions: Iterable[NDArray] = (),
    images: Collection[str] | None = None,
) -> Statistics:
    """Compute statistics over whole episodes, in one pass and with float64 sums.

    Args:
        episodes: pairs of observations, (T + 1, ...) or a dict of such, and rewards (T,).
        actions: (T, ...) actions of each episode, as the environment takes them; integers are
            discrete and have no moments.
        images: keys of the parts that are images, which are scaled by their known range and have no
            moments; None for every part of bytes.

    Raises:
        ValueError: there are no episodes.
    """
    parts: dict[str, _Sums] = {}
    rewards = _Sums(np.zeros(1))
    worst = 0.0
    for observations, episode_rewards in episodes:
        by_key = observations if isinstance(observations, dict) else {WHOLE: observations}
        for key, values in by_key.items():
            if key in images if images is not None else values.dtype == np.uint8:
                continue
            if key not in parts:
                parts[key] = _Sums(values[0])
            parts[key].add(values)
        rewards.add(episode_rewards[:, None])
        returns = np.cumsum(episode_rewards[::-1].astype(np.float64))
        worst = min(worst, float(returns.min(initial=0.0)))
    if not rewards.rows:
        raise ValueError("no episodes to fit the normalisers on; give at least one")
    reward = rewards.moments()
    return Statistics(
        observation={key: sums.moments() for key, sums in parts.items()},
        reward_mean=reward.mean[0],
        reward_std=reward.std[0],
        worst_return=_tensor(worst),
        action=_action_moments(actions),
    )


def _action_moments(episodes: Iterable[NDArray]) -> Moments | None:
    sums: _Sums | None = None
    for actions in episodes:
        if actions.dtype.kind != "f":
            return None
        sums = sums or _Sums(actions[0])
        sums.add(actions)
    return sums.moments() if sums else None


def _tensor(value: NDArray | float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _std(variance: NDArray) -> Tensor:
    """Return the standard deviation, or one for channels that count as constant."""
    std = np.sqrt(np.maximum(variance, 0.0))
    return _tensor(np.where(std < MIN_STD, 1.0, std))
