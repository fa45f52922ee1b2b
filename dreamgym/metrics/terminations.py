"""Terminations: a reliability diagram, precision and recall, and the lengths of episodes."""

from __future__ import annotations

import numpy as np

from dreamgym.metrics.calibration import BINS, calibration
from dreamgym.metrics.channels import MIN_WINDOWS
from dreamgym.metrics.context import Figures, MetricContext
from dreamgym.metrics.rewards import precision_recall
from dreamgym.metrics.survival import SAMPLE, dream_survival, real_survival
from dreamgym.metrics.windows import draw_windows, max_steps, window_shape
from dreamgym.models.reduction import float64_on_host

MAX_WINDOWS = (256, 64)
"""Maximum number of windows for vectors and for images."""


def termination_detail(context: MetricContext) -> Figures:
    """Return how well terminations are predicted one step ahead, and the lengths that follow.

    `reliability` has the predictions, the mean predicted probability and the observed frequency of
    each bin of width 0.1 that holds any (DeGroot and Fienberg 1983). Precision and recall are those
    of probabilities of at least a half. `survival` is the share of windows, and of dreams of the
    same actions, that have not terminated after each step; `length_distance` is their largest
    difference where at least 32 windows are left, as in a two-sample Kolmogorov-Smirnov test. The
    share of real windows is the product of Kaplan and Meier (1958), because truncated episodes say
    nothing about what followed.
    """
    predicted, _, terminated = context.all_steps
    if not len(terminated):
        return {}
    result = calibration(predicted.termination, terminated)
    probability = float64_on_host(predicted.termination).numpy()
    happened = terminated.cpu().numpy()
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    figures: Figures = {
        "count": context.distinct(len(happened)),
        **result._asdict(),
        **precision_recall(probability >= 0.5, happened),
        "reliability": [
            [int(chosen.sum()), float(probability[chosen].mean()), float(happened[chosen].mean())]
            for i in range(BINS)
            if (chosen := bins == i).any()
        ],
    }
    return {"termination": figures | _survival(context)}


def _survival(context: MetricContext) -> Figures:
    steps = min(context.horizon, max_steps(context.dataset, context.episodes))
    if not steps:
        return {}
    rng = np.random.default_rng([context.seed, 0x50F])
    shape = window_shape(context.dataset, steps, MAX_WINDOWS)
    windows = draw_windows(context.model, context.dataset, context.episodes, shape, rng)
    windows = windows.take(windows.mask[:, 0].nonzero().squeeze(-1))
    dreamt = float64_on_host(dream_survival(context.model, windows, [SAMPLE], rng)[SAMPLE]).mean(0)
    survived, known = (leaf.cpu().numpy() for leaf in real_survival(windows))
    at_risk = (
        np.concatenate([np.ones((len(known), 1), bool), known[:, :-1] & (survived[:, :-1] > 0)], 1)
        & known
    )
    ended = (at_risk & (survived == 0)).sum(0)
    count = at_risk.sum(0)
    real = np.cumprod(1 - ended / np.maximum(count, 1))
    compared = count >= MIN_WINDOWS
    dreams = dreamt.cpu().numpy()
    figures: Figures = {
        "survival": {"real": real.tolist(), "dream": dreams.tolist(), "windows": count.tolist()}
    }
    if compared.any():
        figures["length_distance"] = float(np.abs(real - dreams)[compared].max())
    return figures
