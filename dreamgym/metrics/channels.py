"""Open-loop errors of each number of the observations, against two baselines."""

from __future__ import annotations

import numpy as np

from dreamgym.metrics.context import FORECAST_HORIZONS, Figures, MetricContext
from dreamgym.metrics.forecasts import channel_names, joined
from dreamgym.metrics.open_loop import open_loop_errors
from dreamgym.models import Decodes
from dreamgym.models.observations import is_image, observation_boxes

MIN_WINDOWS = 32
"""Fewer windows say little: a horizon that fewer reach is shown in grey and judged by nothing."""

MAX_FRAME_HORIZON = 50
"""Furthest horizon at which frames are decoded and compared."""


def channel_errors(context: MetricContext) -> Figures:
    """Return the errors of forecasts of each number of the observations, by horizon.

    Root mean square errors in units of the number's spread: of one sampled dream, of the mean of
    several, of repeating the last observation, and of a linear model of observation and action
    fitted by least squares. A forecast is worth something as far as the mean beats both baselines.
    (The k-step error of Chua et al. 2018, arXiv 1805.12114, section 5, and its persistence
    baseline, which weather services use.)
    """
    if not context.forecasts:
        return {}
    forecasts = joined(context.forecasts)
    names = channel_names(context.model, context.names)
    table: dict[str, list[list[float]]] = {
        key: [] for key in ("sampled", "mean", "repeat_last", "linear")
    }
    for row in range(len(forecasts.horizons)):
        samples, truth, last, linear = forecasts.at(row)
        differences = {
            "sampled": samples - truth[:, None],
            "mean": samples.mean(1) - truth,
            "repeat_last": last - truth,
            "linear": linear - truth,
        }
        for key, difference in differences.items():
            flat = (difference / forecasts.spread).reshape(-1, len(names))
            table[key].append(np.sqrt(np.square(flat).mean(0)).tolist())
    return {
        "channels": {
            "names": names,
            "varies": np.isfinite(forecasts.spread).tolist(),
            "horizons": forecasts.horizons.tolist(),
            "windows": forecasts.alive.sum(1).tolist(),
            **table,
        }
    }


def frame_errors(context: MetricContext) -> Figures:
    """Return the errors of forecasts of each image in the observations, by horizon.

    As `channel_errors`, in units of the spread of all pixels, and without a linear model.
    """
    model = context.model
    boxes = observation_boxes(model.observation_space)
    images = [key for key, box in boxes.items() if is_image(box)]
    if not images or not isinstance(model, Decodes):
        return {}
    errors = open_loop_errors(
        model,
        context.dataset,
        context.episodes,
        horizons=[k for k in FORECAST_HORIZONS if k <= min(context.horizon, MAX_FRAME_HORIZON)],
        seed=context.seed,
    )
    parts = [errors[key] if isinstance(errors, dict) else errors for key in images]
    if not len(parts[0].horizons):
        return {}
    table = {
        key: np.stack([getattr(part, key) for part in parts], 1).tolist()
        for key in ("sampled", "mean", "repeat_last")
    }
    return {
        "frames": {
            "names": [key or "image" for key in images],
            "varies": [True] * len(images),
            "horizons": parts[0].horizons.tolist(),
            "windows": parts[0].windows.tolist(),
            **table,
        }
    }
