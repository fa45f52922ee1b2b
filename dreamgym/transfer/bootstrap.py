"""Bootstrap intervals of means."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CHUNK_ELEMENTS = 4_000_000  # indices drawn at a time: 32 MB


def bootstrap_means(
    values: NDArray[np.float64], *, resamples: int = 10_000, seed: int = 0
) -> NDArray[np.float64]:
    """Means of `resamples` samples drawn with replacement from `values`.

    Args:
        values: (n,), n >= 1.
        resamples: how many samples of size n are drawn.
        seed: of a generator of its own; the global generators are not touched.

    Returns:
        (resamples,) float64.
    """
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // len(values))
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        means[start:stop] = values[rng.integers(0, len(values), (stop - start, len(values)))].mean(
            1
        )
    return means


def mean_interval(
    values: NDArray[np.float64], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile-bootstrap interval of the mean (Efron 1979).

    Args:
        values: (n,), n >= 1; with n = 1 the interval is that one value.
        confidence: the share of resampled means inside, in (0, 1).
        seed: of the resampling.

    Returns:
        (low, high), in the units of `values`.
    """
    return _percentiles(bootstrap_means(values, seed=seed), confidence)


def difference_interval(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile-bootstrap interval of mean(first) - mean(second), two independent samples.

    Args:
        first: (n,), n >= 1.
        second: (m,), m >= 1.
        confidence: the share of resampled differences inside, in (0, 1).
        seed: of the resampling.

    Returns:
        (low, high), in the units of the values.
    """
    # two different streams: the same indices in both would correlate the resamples
    streams = np.random.SeedSequence(seed).generate_state(2)
    difference = bootstrap_means(first, seed=int(streams[0])) - bootstrap_means(
        second, seed=int(streams[1])
    )
    return _percentiles(difference, confidence)


def _percentiles(means: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
