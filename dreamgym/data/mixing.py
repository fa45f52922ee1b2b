"""Segments from several datasets at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym.data.segments import Sampler, SegmentBatch

Array = NDArray[Any]


class Mixture:
    """Draws each segment from one of several samplers, chosen by its weight.

    Args:
        samplers: At least one, over datasets of the same spaces, with segments of the same length.
        weights: One for each, not negative, not all zero; they need not add up to one.

    Raises:
        ValueError: The numbers of samplers and weights differ, or a weight is out of range.
    """

    def __init__(self, samplers: Sequence[Sampler], weights: Sequence[float]) -> None:
        shares = np.asarray(weights, dtype=np.float64)
        if not samplers or shares.shape != (len(samplers),):
            raise ValueError(
                f"{len(samplers)} samplers and {shares.size} weights; one each, please"
            )
        if not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
            raise ValueError(f"the weights are {list(weights)}; at least 0, and not all 0")
        self._samplers = list(samplers)
        self._shares = shares / shares.sum()

    def draw(self, batch_size: int, rng: np.random.Generator) -> SegmentBatch:
        """`batch_size` segments; the same generator state gives the same segments."""
        which = rng.choice(len(self._samplers), size=batch_size, p=self._shares)
        counts = np.bincount(which, minlength=len(self._samplers)).tolist()
        batches = [
            sampler.draw(count, rng)
            for sampler, count in zip(self._samplers, counts, strict=True)
            if count
        ]
        # The batches lie one after the other by sampler: bring each segment to its drawn place.
        place = np.argsort(np.argsort(which, kind="stable"), kind="stable")
        return SegmentBatch(*(_joined(list(parts), place) for parts in zip(*batches, strict=True)))


def _joined(parts: list[Any], place: Array) -> Any:
    if isinstance(parts[0], dict):
        return {key: _joined([part[key] for part in parts], place) for key in parts[0]}
    return np.concatenate(parts)[place]
