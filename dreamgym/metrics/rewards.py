"""Rewards one step ahead: error, correlation, and the rare ones; and events further ahead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym._device import float32_by_default
from dreamgym.data import AnyDataset
from dreamgym.metrics.context import Figures, MetricContext
from dreamgym.metrics.correlation import pearson, spearman
from dreamgym.metrics.open_loop import dream_windows, limit_windows
from dreamgym.metrics.windows import BURN_IN, draw_windows, max_steps, window_shape
from dreamgym.models import WorldModel
from dreamgym.models.reduction import float64_on_host

RARE = 0.1
"""Rewards that differ from the most frequent one are events where at most this share do."""

MAX_WINDOWS = (2048, 2048)
"""Maximum number of windows in `reward_events`, for vectors and for images: events are rare."""

Array = NDArray[np.floating]


class RewardEvents(NamedTuple):
    """Rewards that dreams predict k steps ahead, and those that came, at K horizons; leaves (K,).

    An event is a reward that differs from the most frequent one. One is predicted where a dream's
    reward lies at least half of the mean event's distance away from that; it is a hit where an
    event of the same sign came at that very step.

    Attributes:
        horizons: numbers of steps ahead.
        windows: numbers of windows of held-out episodes that are long enough.
        happened: numbers of events that came.
        expected: numbers of events that were predicted.
        hits: numbers of events that came and were predicted.
    """

    horizons: NDArray[np.integer]
    windows: NDArray[np.integer]
    happened: NDArray[np.integer]
    expected: NDArray[np.integer]
    hits: NDArray[np.integer]

    @property
    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of precision and recall, (K,); not a number where there was no event."""
        total = (self.happened + self.expected).astype(np.float64)
        return np.divide(2.0 * self.hits, total, out=np.full(len(total), np.nan), where=total > 0)


@float32_by_default()
@torch.no_grad()
def reward_events(
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[np.integer],
    *,
    horizons: Iterable[int] = range(1, 16),
    seed: int = 0,
) -> RewardEvents:
    """Compare rewards in dreams that begin in held-out episodes with what these brought.

    Each window is dreamt once under its own actions, and counts at a horizon as long as its episode
    continues; whether the dream itself would have ended plays no part. Where events follow from
    chance, a perfect model's F1 is below 1.

    Args:
        model: model in eval mode.
        dataset: source of the episodes.
        episodes: (E,) indices of episodes that the model was not fitted to.
        horizons: numbers of steps ahead; those that no episode reaches are left out.
        seed: seed of the windows and of the model's noise.
    """
    limit = max_steps(dataset, episodes)
    reachable = sorted({int(k) for k in horizons if 1 <= k <= limit})
    rows: list[tuple[int, ...]] = []
    if reachable:
        rng = np.random.default_rng([seed, 0x4E7A])
        shape = window_shape(dataset, reachable[-1], MAX_WINDOWS)
        windows = draw_windows(model, dataset, episodes, shape, rng)
        windows = limit_windows(model, windows, samples=1)
        reward, mask = windows.segment.reward.cpu().numpy(), windows.segment.mask.cpu().numpy()
        values, counts = np.unique(reward[mask], return_counts=True)
        usual = values[counts.argmax()]
        distances = np.abs(reward[mask] - usual)
        least = distances[distances > 0].mean() / 2 if distances.any() else np.inf
        for k, kept, _, prediction in dream_windows(model, windows, 1, rng):
            if k not in reachable:
                continue
            real = reward[kept.cpu().numpy(), BURN_IN + k - 1] - usual
            guess = prediction.reward.cpu().numpy() - usual
            happened, expected = real != 0, np.abs(guess) >= least
            hits = happened & expected & (np.sign(real) == np.sign(guess))
            rows.append((k, len(kept), happened.sum(), expected.sum(), hits.sum()))
    return RewardEvents(*np.asarray(rows, dtype=np.int64).reshape(-1, 5).T)


def reward_detail(context: MetricContext) -> Figures:
    """Return how predicted rewards compare with real ones, one step ahead.

    `correlation` is Pearson's and `rank_correlation` Spearman's, which single outliers do not
    decide; None where one of both does not vary. Where rewards other than the
    most frequent one are rare, they are events: one is predicted where the predicted reward is
    nearer to the mean event than to the usual reward, and `events` has precision and recall.
    """
    predicted, reward, _ = context.all_steps
    kept = (predicted.termination < 1).cpu().numpy()  # a dream outside the data ends with another
    guess = float64_on_host(predicted.reward).numpy()[kept]
    real = float64_on_host(reward).numpy()[kept]
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
