"""Calibration of forecasts: how often the truth lies inside the intervals that dreams span."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dreamgym.metrics.context import Figures, MetricContext
from dreamgym.metrics.correlation import spearman
from dreamgym.metrics.forecasts import Forecasts, joined

LEVELS = (0.5, 0.8, 0.95)
"""Nominal coverage of the central intervals."""

PIT_BINS = 10

POINT = 1e-6
"""Forecasts whose samples differ by less than this share of the spread are points, not intervals:
about the rounding error of float32."""

Array = NDArray[np.floating]


def interval_calibration(context: MetricContext) -> Figures:
    """Return the coverage of central intervals by horizon, raw and recalibrated.

    The raw coverage is that of the probability integral transform (PIT), the rank of the truth
    among the samples, which is uniform for a calibrated forecast whatever the number of samples
    (Dawid 1984; the randomised ranks of Czado et al. 2009). The recalibrated intervals are the
    sampled ones stretched about their median by a factor for each horizon and level, chosen on one
    half of the held-out episodes and measured on the other (split conformal prediction: Vovk et al.
    2005; Romano et al. 2019, arXiv 1905.03222), in both directions: `recalibrated` is the coverage
    of all episodes, in which errors of the two partly cancel, and `recalibrated_each_way` has both.
    Where many windows need exactly the same factor, a random share of them counts as inside (the
    smoothed conformal predictors of Vovk et al. 2005, section 2.4, exact where others are
    conservative): a number that is 0 or 1, such as a contact, lies at the end of its interval more
    often than not.
    """
    parts = [each for each in context.forecasts if _are_intervals(each)]
    if not parts:
        return {}
    both = joined(parts)
    rng = np.random.default_rng([context.seed, 0x917])
    figures: Figures = {
        "levels": list(LEVELS),
        "horizons": both.horizons.tolist(),
        "windows": both.alive.sum(1).tolist(),
        "coverage": [],
        "pit": [],
    }
    for row in range(len(both.horizons)):
        pit = _pit(both, row, rng)
        figures["coverage"].append([_share(np.abs(pit - 0.5) <= level / 2) for level in LEVELS])
        counts = np.histogram(pit, bins=PIT_BINS, range=(0, 1))[0]
        figures["pit"].append((counts / max(1, counts.sum())).tolist())
    if len(parts) == 2:
        figures |= _recalibrated(parts, rng)
    return {"intervals": figures}


def _recalibrated(halves: list[Forecasts], rng: np.random.Generator) -> Figures:
    """Return the factors, and the coverage of each half with the other half's factors."""
    count = min(len(half.horizons) for half in halves)
    factors, coverage, each_way = [], [], []
    for row in range(count):
        scores = [_scores(half, row) for half in halves]
        factors.append(np.mean([_quantiles(each) for each in scores], 0).tolist())
        inside = [
            (_inside(level, own, other, rng), _inside(level, other, own, rng))
            for level, own, other in zip(LEVELS, *scores, strict=True)
        ]
        coverage.append([_share(np.concatenate(pair)) for pair in inside])
        each_way.append([[_share(half) for half in pair] for pair in inside])
    return {"factors": factors, "recalibrated": coverage, "recalibrated_each_way": each_way}


def _inside(
    level: float, scores: Array, reference: Array, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return whether the smoothed conformal p-value of each score exceeds 1 - level.

    Args:
        level: nominal coverage.
        scores: scores to judge; an infinite one is outside, since no factor stretches a point.
        reference: scores of the other half.
        rng: generator that decides between equal scores.
    """
    ordered = np.sort(reference)
    below, up_to = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    larger, equal = len(ordered) - up_to, up_to - below
    p = (larger + rng.random(scores.shape) * (equal + 1)) / (len(ordered) + 1)
    inside: NDArray[np.bool_] = (p > 1 - level) & np.isfinite(scores)
    return inside


def _quantiles(scores: list[Array]) -> Array:
    """Return the factor of each level: its quantile of the scores, with the finite-sample rank.

    Where more intervals than the level allows are points beside the truth, it is the largest score
    of the others: no factor stretches a point.
    """
    factors = []
    for level, values in zip(LEVELS, scores, strict=True):
        finite = values[np.isfinite(values)]
        rank = min(1.0, np.ceil(level * (len(values) + 1)) / max(1, len(finite)))
        factors.append(float(np.quantile(finite, rank)) if len(finite) else 1.0)
    return np.array(factors)


def _scores(forecasts: Forecasts, row: int) -> list[Array]:
    """Return, for each level, by how much each interval must be stretched to hold the truth.

    An interval without width has a score of 0 where it is the truth and infinity where it is not,
    up to `POINT`.
    """
    samples, truth, _, _ = forecasts.at(row)
    median = np.median(samples, 1)
    scores = []
    for level in LEVELS:
        low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=1)
        above = truth >= median
        room = np.where(above, high - median, median - low)
        least = np.broadcast_to(POINT * forecasts.spread, room.shape)
        distance = np.abs(truth - median)
        point = room <= least
        needed = np.where(distance <= least, 0.0, np.inf)
        np.divide(distance, room, out=needed, where=~point)
        scores.append(needed[:, np.isfinite(forecasts.spread)].reshape(-1))
    return scores


def _pit(forecasts: Forecasts, row: int, rng: np.random.Generator) -> Array:
    """Return the randomised rank of each truth among its samples, in [0, 1]."""
    samples, truth, _, _ = forecasts.at(row)
    varies = np.isfinite(forecasts.spread)
    below = (samples < truth[:, None]).sum(1)[:, varies]
    equal = (samples == truth[:, None]).sum(1)[:, varies]
    rank = below + rng.random(below.shape) * (equal + 1)
    return (rank / (samples.shape[1] + 1)).reshape(-1)


def _are_intervals(forecasts: Forecasts) -> bool:
    """Return whether most samples of a window differ: a model of points has no intervals."""
    samples, _, _, _ = forecasts.at(0)
    varies = np.isfinite(forecasts.spread)
    if not varies.any() or not len(samples):
        return False
    width = samples[..., varies].std(1) / forecasts.spread[varies]
    return bool(np.median(width) > POINT)


def spread_and_error(context: MetricContext) -> Figures:
    """Return how well the dreams' own spread, and their uncertainty, rank the errors.

    Spearman's correlation over windows, by horizon: of the standard deviation of the sampled dreams
    and of the epistemic uncertainty (the disagreement of an ensemble), each with the error of the
    mean forecast. (The spread-skill relation of ensemble forecasts, Whitaker and Loughe 1998; of
    MOPO's and other penalties: Lu et al. 2022, arXiv 2110.04135.)
    """
    if not context.forecasts:
        return {}
    both = joined(context.forecasts)
    varies = np.isfinite(both.spread)
    rows: dict[str, list[float | None]] = {"spread": [], "uncertainty": []}
    for row in range(len(both.horizons)):
        samples, truth, _, _ = both.at(row)
        scaled = samples[..., varies] / both.spread[varies]
        error = np.square(scaled.mean(1) - truth[:, varies] / both.spread[varies]).mean(-1)
        rows["spread"].append(spearman(scaled.var(1).mean(-1), error))
        rows["uncertainty"].append(
            spearman(both.uncertainty[row][both.alive[row]], error)
            if context.model.has_uncertainty
            else None
        )
    figures: Figures = {"horizons": both.horizons.tolist(), "spread_error": rows["spread"]}
    if context.model.has_uncertainty:
        figures["uncertainty_error"] = rows["uncertainty"]
    return {"spread_and_error": figures}


def _share(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if values.size else float("nan")
