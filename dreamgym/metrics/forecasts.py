"""Forecasts: sampled dreams under the actions of held-out episodes, beside what happened.

Errors by channel, intervals and their calibration are all computed of the same forecasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym._device import float32_by_default
from dreamgym.data import AnyDataset
from dreamgym.metrics.linear import LinearModel, fit_linear
from dreamgym.metrics.open_loop import dream_windows, limit_windows
from dreamgym.metrics.windows import (
    BURN_IN,
    Windows,
    as_float,
    draw_windows,
    max_steps,
    window_shape,
)
from dreamgym.models import WorldModel
from dreamgym.models.observations import Observation, get_part, is_image, observation_boxes

Array = NDArray[np.floating]

MAX_WINDOWS = (512, 64)
"""Maximum number of windows, for vectors and for images."""

SAMPLES = 19
"""Dreams of one window: with 19, a twentieth lies below, between or above each."""

MAX_ROW_STEPS = 1_000_000
"""Approximate number of steps of single rows in one measurement."""


class Forecasts(NamedTuple):
    """S sampled dreams of N windows at K horizons, for the n numbers of vector observations.

    Attributes:
        horizons: (K,) steps ahead.
        alive: (K, N) bool, whether the episode lasts so long; other entries mean nothing.
        samples: (K, N, S, n) dreamt observations, in the real environment's units.
        truth: (K, N, n) real observations.
        last: (N, n) real observations before the dream.
        linear: (K, N, n) forecasts of a linear model of the same actions.
        spread: (n,) standard deviation of the observations; infinite where they do not change.
        uncertainty: (K, N) mean epistemic uncertainty of the steps up to the horizon.
    """

    horizons: NDArray[np.integer]
    alive: NDArray[np.bool_]
    samples: Array
    truth: Array
    last: Array
    linear: Array
    spread: Array
    uncertainty: Array

    def at(self, row: int) -> tuple[Array, Array, Array, Array]:
        """Return samples, truth, last and linear of the windows that reach `horizons[row]`."""
        alive = self.alive[row]
        return (
            self.samples[row][alive],
            self.truth[row][alive],
            self.last[alive],
            self.linear[row][alive],
        )


def joined(parts: Sequence[Forecasts]) -> Forecasts:
    """Join forecasts of different episodes at the horizons that all of them have."""
    count = min(len(part.horizons) for part in parts)
    first = parts[0]
    by_horizon = {
        name: np.concatenate([getattr(part, name)[:count] for part in parts], 1)
        for name in ("alive", "samples", "truth", "linear", "uncertainty")
    }
    return first._replace(
        horizons=first.horizons[:count],
        last=np.concatenate([part.last for part in parts]),
        spread=np.mean([part.spread for part in parts], 0),
        **by_horizon,
    )


@float32_by_default()
@torch.no_grad()
def forecast(  # noqa: PLR0913 - of what, how far and how often are six of them
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[np.integer],
    *,
    horizons: Sequence[int],
    samples: int = SAMPLES,
    fitted_to: NDArray[np.integer] | None = None,
    seed: int = 0,
) -> Forecasts | None:
    """Dream windows of held-out episodes under their own actions, several times each.

    Args:
        model: model in eval mode that decodes.
        dataset: source of the episodes.
        episodes: (E,) indices of held-out episodes.
        horizons: steps ahead, ascending; those that no episode reaches are left out.
        samples: dreams of each window.
        fitted_to: (E,) episodes to fit the linear model to; None for `episodes` themselves.
        seed: seed of the windows and of the model's noise.

    Returns:
        The forecasts; None where no episode is long enough, or no part of the observations is a
        vector.
    """
    keys = vector_keys(model)
    limit = max_steps(dataset, episodes)
    reached = [k for k in horizons if k <= limit]
    if not keys or not reached:
        return None
    rng = np.random.default_rng([seed, 0xF0CA])
    shape = window_shape(dataset, reached[-1], MAX_WINDOWS)
    windows = draw_windows(model, dataset, episodes, shape, rng)
    windows = windows.take(windows.mask[:, 0].nonzero().squeeze(-1))
    if not len(windows.mask):
        return None
    windows = limit_windows(model, windows, samples, MAX_ROW_STEPS)
    reached = [k for k in reached if k <= windows.steps]
    linear = fit_linear(dataset, episodes if fitted_to is None else fitted_to, keys)
    truth = np.stack(
        [_vectors(_rows_at(windows, BURN_IN + k), keys) for k in (0, *reached)]
    ).astype(np.float64)
    count, width = truth.shape[1:]
    dreamt = np.zeros((len(reached), count, samples, width), np.float32)
    alive = np.zeros((len(reached), count), bool)
    unsure = np.zeros((len(reached), count), np.float32)
    total = torch.zeros(count, device=windows.mask.device)
    for k, rows, state, prediction in dream_windows(model, windows, samples, rng):
        total[rows] += prediction.uncertainty.unflatten(0, (len(rows), samples)).mean(1)
        if k not in reached:
            continue
        place, index = reached.index(k), rows.cpu().numpy()
        decoded = _vectors(model.decode(state), keys)  # type: ignore[operator]
        dreamt[place, index] = decoded.reshape(len(index), samples, width)
        alive[place, index] = True
        unsure[place, index] = (total[rows] / k).cpu().numpy()
    return Forecasts(
        horizons=np.array(reached),
        alive=alive,
        samples=dreamt,
        truth=truth[1:],
        last=truth[0],
        linear=_linear_forecasts(linear, windows, truth[0], reached),
        spread=np.concatenate([windows.spread(key).cpu().numpy().reshape(-1) for key in keys]),
        uncertainty=unsure,
    )


def vector_keys(model: WorldModel) -> list[str]:
    """Return the keys of the parts of observations that are vectors."""
    boxes = observation_boxes(model.observation_space)
    return [key for key, box in boxes.items() if not is_image(box)]


def channel_names(model: WorldModel, names: Sequence[str] = ()) -> list[str]:
    """Return a name for each number of the vector observations.

    Args:
        model: the model.
        names: known names; used where there are as many as numbers.
    """
    boxes = observation_boxes(model.observation_space)
    counts = {key: int(np.prod(boxes[key].shape)) for key in vector_keys(model)}
    if len(names) == sum(counts.values()):
        return list(names)
    return [f"{key or 'observation'}[{i}]" for key, count in counts.items() for i in range(count)]


def _rows_at(windows: Windows, step: int) -> Observation:
    observed = windows.segment.observation
    if isinstance(observed, dict):
        return {key: leaf[:, step] for key, leaf in observed.items()}
    return observed[:, step]


def _vectors(observation: Observation, keys: Sequence[str]) -> NDArray[np.floating]:
    """Return the vector parts side by side, (B, n)."""
    parts = [as_float(get_part(observation, key)).flatten(1).cpu().numpy() for key in keys]
    return np.concatenate(parts, 1)


def _linear_forecasts(
    linear: LinearModel, windows: Windows, last: Array, horizons: Sequence[int]
) -> Array:
    """Return the linear model's forecasts (K, N, n) under the windows' actions."""
    actions = windows.segment.action[:, BURN_IN:].cpu().numpy()
    current, forecasts = last, []
    for t in range(horizons[-1]):
        current = linear.step(current, actions[:, t])
        if t + 1 in horizons:
            forecasts.append(current)
    return np.stack(forecasts)
