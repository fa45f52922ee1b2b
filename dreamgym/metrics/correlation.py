"""Correlation coefficients that are None where they are not defined."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-6
"""Numbers whose standard deviation is at most this share of the largest one are constant."""

Array = NDArray[np.floating]


def pearson(first: Array, second: Array) -> float | None:
    """Return Pearson's correlation; None of fewer than three pairs, or where one is constant.

    Args:
        first: (n,) numbers.
        second: (n,) numbers.
    """
    if len(first) < 3 or _is_constant(first) or _is_constant(second):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def spearman(first: Array, second: Array) -> float | None:
    """Return Spearman's rank correlation, ties given their mean rank; None as for `pearson`.

    Args:
        first: (n,) numbers.
        second: (n,) numbers.
    """
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    from scipy.stats import rankdata  # it takes half a second to import

    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _is_constant(values: Array) -> bool:
    return bool(values.std() <= ROUNDING * np.abs(values).max())
