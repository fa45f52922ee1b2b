"""The batches of a fit: each determined by the seed and its number, whenever it is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dreamgym.data import AnyDataset, SegmentBatch, draw_ahead

TRAINING, HELD_OUT = 0, 1  # streams of random numbers that never meet


class Drawn(NamedTuple):
    """A batch and its random numbers.

    Attributes:
        batch: B segments.
        noise: (B, L + 1, noise_dim) float32 uniforms.
        seed: of what the model draws beside them, such as dropout.
    """

    batch: SegmentBatch
    noise: NDArray[np.float32]
    seed: int


class Batches:
    """Batches of some of a dataset's episodes.

    Args:
        data: the dataset.
        episodes: (K,) indices of the episodes.
        length: L, transitions in a segment.
        batch_size: B, segments in a batch.
        noise_dim: the model's.
        seed: of the fit, and the number of the stream.
    """

    def __init__(
        self,
        data: AnyDataset,
        episodes: NDArray[np.integer],
        *,
        length: int,
        batch_size: int,
        noise_dim: int,
        seed: tuple[int, int],
    ) -> None:
        self._data, self._sampler = data, data.segments(episodes, length)
        self._batch_size, self._noise_dim, self._seed = batch_size, noise_dim, seed

    def draw(self, number: int) -> Drawn:
        """The batch of this number."""
        rng = np.random.default_rng([*self._seed, number])
        batch = self._sampler.draw(self._batch_size, rng)
        size, length = batch.mask.shape
        noise = rng.random((size, length + 1, self._noise_dim), dtype=np.float32)
        return Drawn(batch, noise, int(rng.integers(2**63)))

    def following(self, number: int) -> Generator[Drawn, None, None]:
        """The batches from this number on, read ahead where they come from a file."""
        batches = (self.draw(each) for each in itertools.count(number))
        return batches if self._data.in_memory else draw_ahead(batches)
