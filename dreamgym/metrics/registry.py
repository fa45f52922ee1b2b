"""The table of metrics: the figures that are measured on held-out episodes and saved in a world.

Write a function that takes a `MetricContext` and returns JSON-plain figures, and enter it in
`METRICS`: it then appears in the quality of every fit, in world.json and on the world's card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym._device import float32_by_default
from dreamgym.data import AnyDataset
from dreamgym.metrics.action_effect import STEPS, action_effect
from dreamgym.metrics.action_use import action_detail
from dreamgym.metrics.calibration import calibration
from dreamgym.metrics.channels import channel_errors, frame_errors
from dreamgym.metrics.codes import code_use
from dreamgym.metrics.context import Figures, Metric, MetricContext
from dreamgym.metrics.coverage import interval_calibration, spread_and_error
from dreamgym.metrics.limits import limits
from dreamgym.metrics.open_loop import OpenLoopErrors, open_loop_errors
from dreamgym.metrics.rewards import reward_detail
from dreamgym.metrics.shift import behaviour_shift
from dreamgym.metrics.terminations import termination_detail
from dreamgym.metrics.windows import draw_windows, window_shape
from dreamgym.models import Decodes, WorldModel
from dreamgym.models.observations import join_parts, observation_boxes
from dreamgym.models.reduction import float64_on_host, root_mean_square

HORIZONS = (1, 5, 15, 50)
"""Steps ahead at which open-loop errors are saved."""

MAX_WINDOWS = (2048, 256)
"""Maximum number of windows, for vectors and for images."""


def reward_error(context: MetricContext) -> Figures:
    """Return the error of the reward one step ahead, and the spread of the real rewards."""
    if context.one_step is None:
        return {}
    predicted, reward, _ = context.one_step
    return {
        "reward_rmse": root_mean_square(predicted.reward - reward),
        "reward_spread": float(float64_on_host(reward).std(correction=0)),
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
    "limits": limits,
    "codes": code_use,
}
"""Every metric of a fit by its name, in the order in which they are computed."""

REPORT_METRICS: dict[str, Metric] = {
    "channels": channel_errors,
    "frames": frame_errors,
    "reward": reward_detail,
    "termination": termination_detail,
    "intervals": interval_calibration,
    "spread and error": spread_and_error,
    "actions": action_detail,
    "shift": behaviour_shift,
    "limits": limits,
}
"""Every metric of a report (`dreamgym.trust.report`), which may take longer than those of a fit."""


@float32_by_default()
@torch.no_grad()
def evaluate_metrics(
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[np.integer],
    seed: int = 0,
    *,
    metrics: Mapping[str, Metric] = METRICS,
    **known: Any,
) -> Figures:
    """Compute metrics on episodes that the model was not fitted to.

    Args:
        model: model in eval mode.
        dataset: source of the episodes.
        episodes: (E,) indices of held-out episodes.
        seed: seed of the windows and of the model's noise.
        metrics: the metrics by name: `METRICS` or `REPORT_METRICS`.
        **known: further fields of `MetricContext`, such as `starts`.

    Returns:
        JSON-plain figures. `reward_rmse` and `reward_spread` are one step ahead, in the real
        environment's units. `termination_rate`, `_brier`, `_ece` and `_skill` are those of
        `Calibration`, one step ahead; there is no skill if nothing terminated.
        `action_sensitivity` is described in `action_effect`. `open_loop` has, for each horizon,
        the number of distinct windows and the errors of `OpenLoopErrors`. `limits` are those of
        `Limits`; `code_perplexity` and `code_effect` those of `code_figures`. A figure for which no
        held-out episode is long enough is left out.
    """
    context = metric_context(model, dataset, episodes, seed, **known)
    figures: Figures = {}
    for metric in metrics.values():
        figures |= metric(context)
    return figures


@float32_by_default()
@torch.no_grad()
def metric_context(
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[np.integer],
    seed: int = 0,
    **known: Any,
) -> MetricContext:
    """Draw the windows that metrics share; the arguments are those of `evaluate_metrics`."""
    rng = np.random.default_rng([seed, 0x9A11])
    shape = window_shape(dataset, STEPS, MAX_WINDOWS)
    windows = draw_windows(model, dataset, episodes, shape, rng)
    return MetricContext(
        model=model,
        dataset=dataset,
        episodes=episodes,
        windows=windows,
        seed=seed,
        rng=rng,
        **known,
    )
