"""Moments and ranges of the training episodes, to which models fit their normalisers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.models.observations import WHOLE

ROUNDING_UNITS = 16
"""A channel whose standard deviation is within this multiple of the rounding error of its largest
value counts as constant. There is no absolute limit: rewards of 1e-6 are as good as those of 1."""

SMALLEST_STD = 1e-30
"""Smaller standard deviations have no reciprocal in float32; such a channel counts as constant."""

SMALLEST_DELTA = 1e-5
"""Floor of `Moments.delta_std`, as a share of `std`. A channel that only changes between episodes
has no changes to measure, and smaller ones are rounding errors of float32."""

NOISE_SHARE = 0.8
"""A channel whose changes are at least this share of its spread is mostly noise: two values in
succession have a correlation below 0.7. Of independent values the ratio is 1.41; in CartPole,
Pendulum, MountainCarContinuous and Acrobot under random actions no channel exceeds 0.6, and with a
frame skip of 4 only Acrobot's and two of Pendulum's do (0.8 to 1.7), which change about as much in
a step as in an episode."""


REACH = 0.05
"""An episode has reached an end of a channel's range if it came within this share of the range."""

REACHING_SHARE = 0.1
"""Share of the episodes that have to reach an end of a channel's range if it is a bound. Of a range
without a bound, the extreme belongs to one episode, and few others come near."""

REACHING_EPISODES = 10
"""Least number of episodes that have to reach a bound."""


class Moments(NamedTuple):
    """Moments of one part of the observations, in its own units; all (n,).

    They are measured in float64: with a large offset, a range in float32 would lose its digits.

    Attributes:
        mean: mean over all rows.
        std: standard deviation over all rows; the magnitude of a constant channel, or one if it is
            zero.
        low: smallest value; equal to `high` in a constant channel.
        high: largest value.
        delta_std: root mean square of the change from one row to the next, above zero.
        low_is_bound: whether many episodes came down to `low` and none passed it, as at the stop of
            a joint; bool, or empty where it was not measured. Spaces often do not declare such
            bounds: those of MuJoCo's environments are infinite.
        high_is_bound: the same of `high`.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    delta_std: Tensor
    low_is_bound: Tensor = torch.zeros(0, dtype=torch.bool)
    high_is_bound: Tensor = torch.zeros(0, dtype=torch.bool)

    @property
    def constant(self) -> Tensor:
        """Whether a channel never changes, (n,) bool."""
        return self.low == self.high

    @property
    def drifts(self) -> Tensor:
        """Whether a channel can leave the data step by step, (n,) bool.

        A constant channel cannot, and neither can noise, which has no memory. A sample from the
        tail of a distribution says nothing about where the dream is; of a hundred noisy channels,
        such as contact forces, one would leave its range at nearly every step.
        """
        return ~self.constant & (self.delta_std < NOISE_SHARE * self.std)

    def limits(self, space_low: Tensor, space_high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds of possible values, (n,) each: those of the space or of the data.

        The data's count in a channel that cannot drift, and where the data shows a bound well
        inside the space's.

        Args:
            space_low: (n,) lower bounds of the space.
            space_high: (n,) upper bounds of the space.
        """
        reach = REACH * (self.high - self.low)
        below, above = self.low - space_low > reach, space_high - self.high > reach
        by_data = [
            ~self.drifts | (is_bound & inside if is_bound.numel() else False)
            for is_bound, inside in ((self.low_is_bound, below), (self.high_is_bound, above))
        ]
        return (
            torch.where(by_data[0], self.low, space_low.to(self.low)),
            torch.where(by_data[1], self.high, space_high.to(self.high)),
        )


class Statistics(NamedTuple):
    """Moments of training data in the real environment's units.

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
        # Of each episode, how far it came down and up.
        self.falls: list[NDArray] = []
        self.rises: list[NDArray] = []
        self.rounding = np.finfo(first.dtype if first.dtype.kind == "f" else np.float64).eps

    def add(self, observations: NDArray) -> None:
        x = observations.reshape(len(observations), -1).astype(np.float64)
        self.rows, self.steps = self.rows + len(x), self.steps + len(x) - 1
        self.total += (x - self.shift).sum(0)
        self.square += ((x - self.shift) ** 2).sum(0)
        self.delta += (np.diff(x, axis=0) ** 2).sum(0)
        self.low, self.high = np.minimum(self.low, x.min(0)), np.maximum(self.high, x.max(0))
        # An episode that starts at the top has not risen to it, so only what follows the episode's
        # lowest value counts. Its last value may be beyond a limit at which episodes end.
        x = x[:-1]
        row = np.arange(len(x))[:, None]
        if len(x):
            self.falls.append(np.where(row >= x.argmax(0), x, np.inf).min(0))
            self.rises.append(np.where(row >= x.argmin(0), x, -np.inf).max(0))

    def moments(self) -> Moments:
        mean = self.total / self.rows
        variance = self.square / self.rows - mean**2
        std, mean = np.sqrt(np.maximum(variance, 0.0)), mean + self.shift
        magnitude = np.maximum(np.abs(self.low), np.abs(self.high))
        constant = std <= np.maximum(ROUNDING_UNITS * self.rounding * magnitude, SMALLEST_STD)
        std = np.where(constant, np.where(magnitude > SMALLEST_STD, magnitude, 1.0), std)
        delta = np.sqrt(self.delta / max(1, self.steps))
        delta = np.where(constant, std, np.maximum(delta, SMALLEST_DELTA * std))
        low, high = (np.where(constant, mean, end) for end in (self.low, self.high))
        reach = REACH * (high - low)
        bounds = (
            ~constant & _by_many(falls <= self.low + reach for falls in self.falls),
            ~constant & _by_many(rises >= self.high - reach for rises in self.rises),
        )
        return Moments(*map(torch.from_numpy, (mean, std, low, high, delta, *bounds)))


def _by_many(episodes: Iterable[NDArray]) -> NDArray:
    """Return which channels (n,) many episodes have reached, of bools (n,) for each episode."""
    reached = np.array(list(episodes))
    enough = max(REACHING_EPISODES, REACHING_SHARE * len(reached))
    return reached.sum(0) >= enough


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
        worst_return=torch.tensor(worst, dtype=torch.float64),
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
