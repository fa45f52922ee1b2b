"""Shift: whether held-out episodes show the same behaviour as those the model was fitted to."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym.metrics.context import Figures, MetricContext
from dreamgym.metrics.forecasts import channel_names, vector_keys
from dreamgym.models import Decodes
from dreamgym.models.observations import get_part
from dreamgym.models.reduction import float64_on_host

SIGNIFICANCE = 1e-3
"""Probability of calling two samples of the same behaviour different, over all channels."""

MAX_ROWS = 2048

Array = NDArray[np.floating]


def behaviour_shift(context: MetricContext) -> Figures:
    """Return how far held-out observations are distributed differently from the start states.

    The start states of a world were filtered from training episodes, so they stand for them. For
    each number of a vector observation: the largest distance between both distribution functions
    (Kolmogorov-Smirnov), and the distance that the same behaviour exceeds with a probability of
    0.001 over all numbers (Smirnov 1948), counting episodes and not rows, since rows of one episode
    are alike.
    """
    model, starts = context.model, context.starts
    if starts is None or not isinstance(model, Decodes) or not vector_keys(model):
        return {}
    with torch.no_grad():
        anywhere = {key: leaf[context.episode_starts :] for key, leaf in starts.items()}
        fitted = _decoded(context, anywhere if len(next(iter(anywhere.values()))) else starts)
        states = {key: leaf[:MAX_ROWS, 0] for key, leaf in context.windows.states.items()}
        held_out = _decoded(context, states)
    distances = [_distance(a, b) for a, b in zip(fitted.T, held_out.T, strict=True)]
    counts = len(fitted), len(context.episodes)
    if context.training is not None:
        counts = len(context.training), len(context.episodes)
    limit = np.sqrt(-np.log(SIGNIFICANCE / len(distances) / 2) / 2 * sum(counts) / np.prod(counts))
    return {
        "shift": {
            "names": channel_names(model, context.names),
            "distance": distances,
            "limit": float(limit),
            "mean_fitted": fitted.mean(0).tolist(),
            "mean_held_out": held_out.mean(0).tolist(),
            "spread_fitted": fitted.std(0).tolist(),
        }
    }


def _decoded(context: MetricContext, states: dict[str, torch.Tensor]) -> Array:
    """Return the decoded vector observations of states, (N, n)."""
    observation = context.model.decode(states)  # type: ignore[operator]
    keys = vector_keys(context.model)
    parts = [float64_on_host(get_part(observation, key).flatten(1)).numpy() for key in keys]
    return np.concatenate(parts, 1)


def _distance(first: Array, second: Array) -> float:
    """Return the largest distance between two empirical distribution functions."""
    points = np.concatenate([first, second])
    below = [
        np.searchsorted(np.sort(each), points, side="right") / len(each) for each in (first, second)
    ]
    return float(np.abs(below[0] - below[1]).max())
