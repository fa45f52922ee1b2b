"""What every metric is given: a model, held-out episodes, and what is computed of them once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.data import AnyDataset
from dreamgym.metrics.forecasts import Forecasts, forecast
from dreamgym.metrics.windows import BURN_IN, Windows, uniform_noise
from dreamgym.models import Decodes, Prediction, State, WorldModel

Figures = dict[str, Any]
"""JSON-plain numbers by name."""

FORECAST_HORIZONS = (1, 2, 3, 5, 8, 12, 15, 20, 30, 40, 50, 75, 100, 125, 150, 175, 200)
"""Steps ahead of the forecasts that intervals and errors by channel are computed of."""

MIN_HALVES = 4
"""Fewest held-out episodes that are divided into two halves for a recalibration."""


class OneStepPredictions(NamedTuple):
    """Predictions one step ahead, and what really happened.

    Attributes:
        predicted: predictions with leaves (N,).
        reward: (N,) real rewards.
        terminated: (N,) bool, whether the episode really terminated.
    """

    predicted: Prediction
    reward: Tensor
    terminated: Tensor


@dataclass(frozen=True, kw_only=True)
class MetricContext:
    """Everything that a metric may use.

    Attributes:
        model: model in eval mode.
        dataset: source of the episodes.
        episodes: (E,) indices of held-out episodes.
        windows: windows of these episodes, with the burn-in filtered.
        seed: seed of the measurement, for metrics that draw their own windows.
        rng: generator of noise. The metrics share it in the order of `METRICS`, so append new ones:
            then the figures of the others do not change.
        training: (E,) episodes, by index, that the model was fitted to; None if they are not in the
            dataset.
        starts: start states that were filtered from training episodes; None if there are none.
        episode_starts: number of the first `starts`, which begin an episode.
        names: names of the numbers of vector observations; empty for numbered ones.
        horizon: steps after which dreams are truncated; the longest forecast.
    """

    model: WorldModel
    dataset: AnyDataset
    episodes: NDArray[np.integer]
    windows: Windows
    seed: int
    rng: np.random.Generator
    training: NDArray[np.integer] | None = None
    starts: State | None = None
    episode_starts: int = 0
    names: list[str] = field(default_factory=list)
    horizon: int = FORECAST_HORIZONS[-1]

    @cached_property
    def one_step(self) -> OneStepPredictions | None:
        """Predictions one step after the burn-in; None if no held-out episode is long enough."""
        windows = self.windows
        mask = windows.mask[:, 0]
        if not bool(mask.any()):
            return None
        state = {key: leaf[mask] for key, leaf in windows.start().items()}
        actions = windows.segment.action[mask, BURN_IN]
        noise = uniform_noise(self.rng, (len(actions), self.model.noise_dim), actions.device)
        _, predicted = self.model.step(state, actions, noise)
        segment = windows.segment
        return OneStepPredictions(
            predicted, segment.reward[mask, BURN_IN], segment.terminated[mask, BURN_IN]
        )

    @cached_property
    def all_steps(self) -> OneStepPredictions:
        """Predictions from every state of the burn-in, the first of an episode included."""
        segment = self.windows.segment
        mask = segment.mask[:, : BURN_IN + 1]
        states = {key: leaf[mask] for key, leaf in self.windows.states.items()}
        actions = segment.action[:, : BURN_IN + 1][mask]
        noise = uniform_noise(self.rng, (len(actions), self.model.noise_dim), actions.device)
        _, predicted = self.model.step(states, actions, noise)
        reward, terminated = (
            leaf[:, : BURN_IN + 1][mask] for leaf in (segment.reward, segment.terminated)
        )
        return OneStepPredictions(predicted, reward, terminated)

    def distinct(self, count: int) -> int:
        """Return how many of `count` drawn steps are different ones at most: windows overlap."""
        return min(count, int(self.dataset.lengths[self.episodes].sum()))

    @cached_property
    def forecasts(self) -> list[Forecasts]:
        """Forecasts of the vector observations, in two halves that share no episode.

        There is one part where the episodes are too few, and none for a model that does not decode
        or observations without a vector. The linear baseline is fitted to the training episodes, or
        else to the other half; to the same episodes, which favours it, only where there is one part
        and no training episode is in the dataset.
        """
        if not isinstance(self.model, Decodes):
            return []
        halves = [self.episodes]
        if len(self.episodes) >= MIN_HALVES:
            order = np.random.default_rng([self.seed, 0xCA11]).permutation(self.episodes)
            halves = [np.sort(order[0::2]), np.sort(order[1::2])]
        horizons = [k for k in FORECAST_HORIZONS if k <= self.horizon] or [1]
        made = [
            forecast(
                self.model,
                self.dataset,
                half,
                horizons=horizons,
                fitted_to=halves[1 - number]
                if self.training is None and len(halves) == 2
                else self.training,
                seed=self.seed + number,
            )
            for number, half in enumerate(halves)
        ]
        return [each for each in made if each is not None]


Metric = Callable[[MetricContext], Figures]
