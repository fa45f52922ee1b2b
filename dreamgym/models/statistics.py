"""Moments and ranges of the training episodes, to which models fit their normalisers."""

from __future__ import annotations

import math
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

REACHING_SHARE, REACHING_EPISODES = 0.1, 10
"""An end of a channel's range is a bound if this share of the episodes has reached it, and at least
this many. Of a range without a bound, the extreme belongs to one episode, and few come near it."""


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
        low_is_bound: bool, whether many episodes of random actions came down to `low` and none
            passed it, as at the stop of a joint. Spaces often do not declare such bounds: those of
            MuJoCo's environments are infinite.
        high_is_bound: the same of `high`.
        still: share of the steps in which it does not change at all.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    delta_std: Tensor
    low_is_bound: Tensor = torch.tensor(False)
    high_is_bound: Tensor = torch.tensor(False)
    still: Tensor = torch.tensor(0.0)

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

    @property
    def sparse(self) -> Tensor:
        """Whether a channel keeps one value most of the time, (n,) bool.

        Either it never changes, or it leaves that value for moments, as contact forces do. A change
        that lasts, such as that of a switch, is no such moment.
        """
        return (self.still > 0.5) & (self.delta_std >= self.std)

    def limits(self, space_low: Tensor, space_high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds of possible values, (n,) each: those of the space or of the data.

        The data's count in a channel that cannot drift, and where the data shows a bound and the
        space has none near it.

        Args:
            space_low: (n,) lower bounds of the space.
            space_high: (n,) upper bounds of the space.
        """
        reach = REACH * (self.high - self.low)
        low_is_bound = ~self.drifts | (self.low_is_bound & (self.low - space_low > reach))
        high_is_bound = ~self.drifts | (self.high_is_bound & (space_high - self.high > reach))
        return (
            torch.where(low_is_bound, self.low, space_low.to(self.low)),
            torch.where(high_is_bound, self.high, space_high.to(self.high)),
        )


class Statistics(NamedTuple):
    """Moments of training data in the real environment's units.

    Attributes:
        observation: moments of each part, by key of a Dict space or `WHOLE`; images have none.
        reward_mean: () mean reward.
        reward_std: () standard deviation of the rewards.
        worst_return: () lowest return from any step to its episode's end, and at most zero.
        terminal_reward_low: () lowest reward of a step that terminated its episode; -infinity if no
            episode is known to have terminated.
        terminal_reward_high: () the highest; infinity likewise.
        action: moments of single Box actions, before any grouping into blocks; None if actions are
            discrete, or were not measured.
    """

    observation: dict[str, Moments]
    reward_mean: Tensor
    reward_std: Tensor
    worst_return: Tensor
    terminal_reward_low: Tensor = torch.tensor(-math.inf)
    terminal_reward_high: Tensor = torch.tensor(math.inf)
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
        self.still = self.total.copy()
        self.low = np.full_like(self.shift, np.inf)
        self.high = -self.low
        # Of each episode of random actions, how far it came down and up.
        self.falls: list[NDArray] = []
        self.rises: list[NDArray] = []
        self.rounding = np.finfo(first.dtype if first.dtype.kind == "f" else np.float64).eps

    def add(self, observations: NDArray, random: bool = False) -> None:
        x = observations.reshape(len(observations), -1).astype(np.float64)
        self.rows, self.steps = self.rows + len(x), self.steps + len(x) - 1
        self.total += (x - self.shift).sum(0)
        self.square += ((x - self.shift) ** 2).sum(0)
        change = np.diff(x, axis=0)
        self.delta, self.still = self.delta + (change**2).sum(0), self.still + (change == 0).sum(0)
        self.low, self.high = np.minimum(self.low, x.min(0)), np.maximum(self.high, x.max(0))
        if random:
            # In its second half the episode has time to pass what it came to in its first. One that
            # starts at the top has not risen to it, so only what follows its lowest value counts.
            x = x[: (len(x) + 1) // 2]
            row = np.arange(len(x))[:, None]
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
        low_is_bound = ~constant & _by_many(fall <= low + reach for fall in self.falls)
        high_is_bound = ~constant & _by_many(rise >= high - reach for rise in self.rises)
        still = self.still / max(1, self.steps)
        found = (mean, std, low, high, delta, low_is_bound, high_is_bound, still)
        return Moments(*map(torch.from_numpy, found))


def _by_many(reached: Iterable[NDArray]) -> NDArray:
    """Return which channels (n,) many episodes have reached; one array (n,) for each episode."""
    episodes = list(reached)
    enough = max(REACHING_EPISODES, REACHING_SHARE * len(episodes))
    return np.asarray(sum(episodes, start=np.int64(0)) >= enough)


def measure_statistics(
    episodes: Iterable[tuple[Any, NDArray]],
    actions: Iterable[NDArray] = (),
    images: Collection[str] | None = None,
    random: Iterable[bool] = (),
    terminated: Iterable[bool] = (),
) -> Statistics:
    """Compute statistics over whole episodes, in one pass and with float64 sums.

    Args:
        episodes: pairs of observations, (T + 1, ...) or a dict of such, and rewards (T,).
        actions: (T, ...) actions of each episode, as the environment takes them; integers are
            discrete and have no moments.
        images: keys of the parts that are images, which are scaled by their known range and have no
            moments; None for every part of bytes.
        random: whether the actions of each episode were drawn at random. Only such episodes can
            show a bound: others may turn back at a place because their policy chose to.
        terminated: whether each episode terminated; by default none is known to have.

    Raises:
        ValueError: there are no episodes.
    """
    flags, ends = iter(random), iter(terminated)
    parts: dict[str, _Sums] = {}
    rewards = _Sums(np.zeros(1))
    worst = 0.0
    terminal: list[float] = []
    for observations, episode_rewards in episodes:
        is_random = next(flags, False)
        by_key = observations if isinstance(observations, dict) else {WHOLE: observations}
        for key, values in by_key.items():
            if key in images if images is not None else values.dtype == np.uint8:
                continue
            if key not in parts:
                parts[key] = _Sums(values[0])
            parts[key].add(values, is_random)
        rewards.add(episode_rewards[:, None])
        returns = np.cumsum(episode_rewards[::-1].astype(np.float64))
        worst = min(worst, float(returns.min(initial=0.0)))
        if next(ends, False):
            terminal.append(float(episode_rewards[-1]))
    if not rewards.rows:
        raise ValueError("no episodes to fit the normalisers on; give at least one")
    reward = rewards.moments()
    return Statistics(
        observation={key: sums.moments() for key, sums in parts.items()},
        reward_mean=reward.mean[0],
        reward_std=reward.std[0],
        worst_return=torch.tensor(worst, dtype=torch.float64),
        terminal_reward_low=torch.tensor(min(terminal, default=-math.inf), dtype=torch.float64),
        terminal_reward_high=torch.tensor(max(terminal, default=math.inf), dtype=torch.float64),
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
