"""Open-loop errors of each number of the observations, against two baselines."""

from __future__ import annotations

import numpy as np

from dreamgym.metrics.context import Figures, MetricContext
from dreamgym.metrics.forecasts import channel_names, joined

MIN_WINDOWS = 32
"""Fewer windows say little: a horizon that fewer reach is shown in grey and judged by nothing."""


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
