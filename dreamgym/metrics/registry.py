"""The table of metrics: the figures that are measured on held-out episodes and saved in a world.

Write a function that takes a `MetricContext` and returns JSON-plain figures, and enter it in
`METRICS`: it then appears in the quality of every fit, in world.json and on the world's card.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym._device import float32_by_default
from dreamgym.data import AnyDataset
from dreamgym.metrics.action_effect import STEPS, action_effect
from dreamgym.metrics.calibration import calibration
from dreamgym.metrics.open_loop import OpenLoopErrors, open_loop_errors
from dreamgym.metrics.windows import BURN_IN, Windows, draw_windows, uniform_noise, window_shape
from dreamgym.models import Decodes, Prediction, WorldModel
from dreamgym.models.observations import join_parts, observation_boxes
from dreamgym.models.reduction import root_mean_square

HORIZONS = (1, 5, 15, 50)
"""Steps ahead at which open-loop errors are saved."""

MAX_WINDOWS = (2048, 256)
"""Maximum number of windows, for vectors and for images."""


class OneStepPredictions(NamedTuple):
    """Predictions for the transition after the burn-in, and what really happened.

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
        episodes: indices of held-out episodes.
        windows: windows of these episodes, with the burn-in filtered.
        seed: seed of the measurement, for metrics that draw their own windows.
        rng: generator of noise. The metrics share it in the order of `METRICS`, so append new ones:
            then the figures of the others do not change.
    """

    model: WorldModel
    dataset: AnyDataset
    episodes: NDArray[np.integer]
    windows: Windows
    seed: int
    rng: np.random.Generator

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


Figures = dict[str, Any]
Metric = Callable[[MetricContext], Figures]


def reward_error(context: MetricContext) -> Figures:
    """Return the error of the reward one step ahead, and the spread of the real rewards."""
    if context.one_step is None:
        return {}
    predicted, reward, _ = context.one_step
    return {
        "reward_rmse": root_mean_square(predicted.reward - reward),
        "reward_spread": float(reward.double().std(correction=0)),
    }


def termination_calibration(context: MetricContext) -> Figures:
    """Return the calibration of the termination probability one step ahead."""
    if context.one_step is None:
        return {}
    result = calibration(context.one_step.predicted.termination, context.one_step.terminated)
    figures: Figures = {
        "termination_rate": result.rate,
        "termination_brier": result.brier,
        "termination_ece": result.ece,
    }
    return figures if result.skill is None else {**figures, "termination_skill": result.skill}


def action_sensitivity(context: MetricContext) -> Figures:
    """Return how much larger the error is under wrong actions (see `action_effect`)."""
    effect = action_effect(context.model, context.windows, context.rng)
    return {} if effect is None else {"action_sensitivity": effect.sensitivity}


def open_loop(context: MetricContext) -> Figures:
    """Return the open-loop errors at `HORIZONS`; nothing for a model that does not decode."""
    model = context.model
    if not isinstance(model, Decodes):
        return {}
    errors = open_loop_errors(
        model, context.dataset, context.episodes, horizons=HORIZONS, seed=context.seed
    )
    keys = list(observation_boxes(model.observation_space))
    tables = {key: _by_horizon(errors[key] if isinstance(errors, dict) else errors) for key in keys}
    figures: Figures = {}
    for k, (windows, _) in tables[keys[0]].items():
        by_part: Any = join_parts({key: tables[key][k][1] for key in keys})
        figures[k] = {"windows": windows, **by_part}
    return {"open_loop": figures}


def _by_horizon(errors: OpenLoopErrors) -> dict[str, tuple[int, dict[str, float]]]:
    """Return the number of windows and the errors, by the number of steps ahead."""
    names = ("rmse", "rmse_of_mean", "repeat_last")
    columns = (errors.sampled, errors.mean, errors.repeat_last)
    return {
        str(k): (
            int(errors.windows[row]),
            {name: float(column[row]) for name, column in zip(names, columns, strict=True)},
        )
        for row, k in enumerate(errors.horizons.tolist())
    }


METRICS: dict[str, Metric] = {
    "reward": reward_error,
    "termination": termination_calibration,
    "action sensitivity": action_sensitivity,
    "open loop": open_loop,
}
"""Every metric by its name, in the order in which they are computed."""


@float32_by_default()
@torch.no_grad()
def evaluate_metrics(
    model: WorldModel, dataset: AnyDataset, episodes: NDArray[np.integer], seed: int = 0
) -> Figures:
    """Compute every metric of `METRICS` on episodes that the model was not fitted to.

    Args:
        model: model in eval mode.
        dataset: source of the episodes.
        episodes: indices of held-out episodes.
        seed: seed of the windows and of the model's noise.

    Returns:
        JSON-plain figures. `reward_rmse` and `reward_spread` are one step ahead, in the real
        environment's units. `termination_rate`, `_brier`, `_ece` and `_skill` are those of
        `Calibration`, one step ahead; there is no skill if nothing terminated.
        `action_sensitivity` is described in `action_effect`. `open_loop` has, for each horizon,
        the number of windows and the errors of `OpenLoopErrors`. A figure for which no held-out
        episode is long enough is left out.
    """
    rng = np.random.default_rng([seed, 0x9A11])
    shape = window_shape(dataset, STEPS, MAX_WINDOWS)
    windows = draw_windows(model, dataset, episodes, shape, rng)
    context = MetricContext(
        model=model, dataset=dataset, episodes=episodes, windows=windows, seed=seed, rng=rng
    )
    figures: Figures = {}
    for metric in METRICS.values():
        figures |= metric(context)
    return figures
