"""Rewards one step ahead: error, correlation, and the rare ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dreamgym.metrics.context import Figures, MetricContext
from dreamgym.metrics.correlation import pearson, spearman

RARE = 0.1
"""Rewards that differ from the most frequent one are events where at most this share do."""

Array = NDArray[np.floating]


def reward_detail(context: MetricContext) -> Figures:
    """Return how predicted rewards compare with real ones, one step ahead.

    `correlation` is Pearson's and `rank_correlation` Spearman's, which single outliers do not
    decide; None where one of both does not vary. Where rewards other than the
    most frequent one are rare, they are events: one is predicted where the predicted reward is
    nearer to the mean event than to the usual reward, and `events` has precision and recall.
    """
    predicted, reward, _ = context.all_steps
    kept = (predicted.termination < 1).cpu().numpy()  # a dream outside the data ends with another
    guess = predicted.reward.double().cpu().numpy()[kept]
    real = reward.double().cpu().numpy()[kept]
    if not len(real):
        return {}
    figures: Figures = {
        "count": context.distinct(len(real)),
        "mean": float(real.mean()),
        "spread": float(real.std()),
        "low": float(real.min()),
        "high": float(real.max()),
        "rmse": float(np.sqrt(np.square(guess - real).mean())),
        "bias": float((guess - real).mean()),
        "predicted_spread": float(guess.std()),
        "correlation": pearson(guess, real),
        "rank_correlation": spearman(guess, real),
        "scatter": _scatter(guess, real, context.seed),
    }
    events = _events(guess, real)
    if events is not None:
        figures["events"] = events
    return {"reward": figures}


def _events(guess: Array, real: Array) -> Figures | None:
    """Return precision and recall of rare rewards; None where no rewards are rare."""
    values, counts = np.unique(real, return_counts=True)
    usual = values[counts.argmax()]
    happened = real != usual
    if not happened.any() or happened.mean() > RARE:
        return None
    typical = real[happened].mean()
    expected = np.abs(guess - typical) < np.abs(guess - usual)
    return {"usual": float(usual), "typical": float(typical)} | precision_recall(expected, happened)


def precision_recall(expected: NDArray[np.bool_], happened: NDArray[np.bool_]) -> Figures:
    """Return precision and recall of events; None where nothing was expected, or happened."""
    hits = int((expected & happened).sum())
    return {
        "happened": int(happened.sum()),
        "expected": int(expected.sum()),
        "precision": hits / int(expected.sum()) if expected.any() else None,
        "recall": hits / int(happened.sum()) if happened.any() else None,
    }


def _scatter(guess: Array, real: Array, seed: int) -> list[list[float]]:
    """Return some pairs (real, predicted) to draw."""
    chosen = np.random.default_rng(seed).permutation(len(real))[:300]
    return [[float(real[i]), float(guess[i])] for i in chosen]
