"""Statistics of returns, with bootstrap intervals.

Means of a few episodes mislead: Agarwal et al. (2021), "Deep reinforcement learning at the edge of
the statistical precipice", arXiv 2108.13264, recommend the interquartile mean (IQM), which is less
sensitive to outliers than the mean and less noisy than the median, with percentile-bootstrap
intervals (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000

_CHUNK_ELEMENTS = 4_000_000  # values resampled at a time: 32 MB

Floats = NDArray[np.float64]
Statistic = Callable[..., Any]
"""A function of values (..., n) and `axis`, as NumPy's mean."""


def iqm(values: Floats, axis: int = -1) -> Any:
    """Return the interquartile mean: that of the middle half of the values.

    Args:
        values: (..., n); a quarter of n, rounded down, is left out on each side.
        axis: axis of the n values.

    Returns:
        (...), in the units of `values`.
    """
    from scipy.stats import trim_mean  # it takes half a second to import

    return trim_mean(values, 0.25, axis=axis)


def interval(
    statistic: Statistic, *samples: Floats, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of a statistic.

    Args:
        statistic: function of as many arrays (..., n) as there are samples, and `axis`.
        *samples: (n,) each, n >= 1, drawn independently of each other; a sample of one value is
            always that value.
        confidence: share of the resampled statistics inside the interval, in (0, 1).
        seed: seed of the resampling; the global generators are not changed.

    Returns:
        (low, high).
    """
    from scipy.stats import bootstrap

    # SciPy refuses samples of one value; two equal ones resample to that value alone.
    given = tuple(np.repeat(each, 2) if len(each) == 1 else np.asarray(each) for each in samples)
    result = bootstrap(
        given,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, _CHUNK_ELEMENTS // max(map(len, given))),
        vectorized=True,
        axis=-1,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(result.low), float(result.high)


def mean_interval(
    values: Floats, *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap interval of the mean of values (n,); see `interval`."""
    return interval(np.mean, values, confidence=confidence, seed=seed)


def share_interval(outcomes: NDArray[np.bool_], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson interval of a share (Wilson 1927).

    Where all of a few outcomes are equal, a bootstrap would claim certainty.

    Args:
        outcomes: (n,) bool, n >= 1.
        confidence: share of such intervals that hold the true share, in (0, 1).

    Returns:
        (low, high), between 0 and 1.
    """
    from scipy.stats import binomtest

    result = binomtest(int(outcomes.sum()), len(outcomes)).proportion_ci(confidence, "wilson")
    return float(result.low), float(result.high)


def difference_interval(
    first: Floats, second: Floats, *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap interval of mean(first) - mean(second) of independent samples.

    Of paired samples, take `mean_interval(first - second)`.

    Args:
        first: (n,), n >= 1.
        second: (m,), m >= 1.
        confidence: share of the resampled differences inside the interval, in (0, 1).
        seed: seed of the resampling.

    Returns:
        (low, high), in the units of the values.
    """
    return interval(_difference, first, second, confidence=confidence, seed=seed)


def _difference(first: Floats, second: Floats, axis: int) -> Any:
    return first.mean(axis) - second.mean(axis)
