"""The batches of a fit: each determined by the seed and its number, whenever it is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dreamgym.data import AnyDataset, SegmentBatch, draw_ahead

TRAINING, HELD_OUT = 0, 1  # streams of random numbers that never meet


class Share(NamedTuple):
    """Which rows of every batch a process works on, and how many at once.

    Attributes:
        process: which of them this is.
        processes: how many share a batch.
        pieces: in which each works on its rows.
    """

    process: int = 0
    processes: int = 1
    pieces: int = 1

    def rows(self, real: NDArray[np.integer]) -> list[NDArray[np.integer]]:
        """Rows of the batch for each piece, of which every process has as many.

        Several pieces are dealt segments of all lengths alike, longest first and turning round
        after each deal: with as many real transitions in each, the mean over pieces is that over
        the batch.

        Args:
            real: (B,) real transitions in each segment.
        """
        order = np.arange(len(real))
        if self.pieces > 1:
            dealt = np.argsort(-real, kind="stable").reshape(-1, self.pieces)
            dealt[1::2] = dealt[1::2, ::-1]
            order = dealt.T.ravel()
        return list(order.reshape(self.pieces, self.processes, -1)[:, self.process])


class Piece(NamedTuple):
    """Segments to work on at once, with their random numbers.

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
        sizes: segments in a batch, transitions in a segment, and the model's `noise_dim`.
        share: what this process sees of each batch.
        seed: of the fit, and the number of the stream.
    """

    def __init__(
        self,
        data: AnyDataset,
        episodes: NDArray[np.integer],
        *,
        sizes: tuple[int, int, int],
        share: Share,
        seed: tuple[int, int],
    ) -> None:
        self._batch_size, length, self._noise_dim = sizes
        self._data, self._sampler = data, data.segments(episodes, length)
        self._share, self._seed = share, seed

    def draw(self, number: int) -> list[Piece]:
        """The batch of this number, in pieces."""
        rng = np.random.default_rng([*self._seed, number])
        batch = self._sampler.draw(self._batch_size, rng)
        size, length = batch.mask.shape
        noise = rng.random((size, length + 1, self._noise_dim), dtype=np.float32)
        seed = int(rng.integers(2**63))
        places = self._share.rows(batch.mask.sum(1))
        # No two processes and no two pieces have the same dropout.
        seeds = range(seed + self._share.process, seed + 2**31, self._share.processes)
        if len(places[0]) == size:
            return [Piece(batch, noise, seed)]
        return [
            Piece(_rows(batch, place), noise[place], own % 2**63)
            for place, own in zip(places, seeds, strict=False)
        ]

    def following(self, number: int) -> Generator[list[Piece], None, None]:
        """The batches from this number on, read ahead where they come from a file."""
        batches = (self.draw(each) for each in itertools.count(number))
        return batches if self._data.in_memory else draw_ahead(batches)


def _rows(batch: SegmentBatch, place: NDArray[np.integer]) -> SegmentBatch:
    seen = batch.observation
    if isinstance(seen, dict):
        observation = {key: values[place] for key, values in seen.items()}
    else:
        observation = seen[place]
    return SegmentBatch(observation, *(leaf[place] for leaf in batch[1:]))
