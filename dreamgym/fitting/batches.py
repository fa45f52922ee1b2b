"""Batches of a fit and their losses, under gradient accumulation and data parallelism.

A batch is determined by the seed and its number, whenever and wherever it is drawn. It is divided
among the processes, and each process divides its rows into micro-batches.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym._device import seeded
from dreamgym.data import AnyDataset, SegmentBatch
from dreamgym.data.layout import index_rows
from dreamgym.data.segments import prefetch_items
from dreamgym.fitting.distributed import Runtime
from dreamgym.models import WorldModel
from dreamgym.models.base import as_segment
from dreamgym.models.reduction import all_reduce_sum, global_batch

TRAINING, HELD_OUT = 0, 1
"""Independent streams of random numbers."""

Terms = dict[str, Tensor]


class Shard(NamedTuple):
    """The share of every batch that one process works on.

    Attributes:
        rank: index of the process.
        world_size: number of processes.
        accumulate: number of micro-batches into which each process divides its rows.
    """

    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def rows(self, lengths: NDArray[np.integer]) -> list[NDArray[np.integer]]:
        """Return the rows of each micro-batch of this process; all have the same size.

        Segments are assigned to micro-batches longest first, in alternating direction, so that all
        micro-batches have nearly the same number of real transitions.

        Args:
            lengths: (B,) real transitions in each segment.
        """
        order = np.arange(len(lengths))
        if self.accumulate > 1:
            dealt = np.argsort(-lengths, kind="stable").reshape(-1, self.accumulate)
            dealt[1::2] = dealt[1::2, ::-1]
            order = dealt.T.ravel()
        return list(order.reshape(self.accumulate, self.world_size, -1)[:, self.rank])


class MicroBatch(NamedTuple):
    """Segments that are processed at once, with their random numbers.

    Attributes:
        batch: B segments.
        noise: (B, L + 1, noise_dim) float32 uniforms.
        seed: seed of torch's generators, for what the model itself draws, such as dropout.
    """

    batch: SegmentBatch
    noise: NDArray[np.float32]
    seed: int


class Batches:
    """Batches of segments of some of a dataset's episodes.

    Args:
        data: source of the episodes.
        episodes: (K,) indices of the episodes.
        sizes: segments in a batch, transitions in a segment, and the model's `noise_dim`.
        shard: share of this process.
        seed: seed of the fit, and number of the stream.
    """

    def __init__(
        self,
        data: AnyDataset,
        episodes: NDArray[np.integer],
        *,
        sizes: tuple[int, int, int],
        shard: Shard,
        seed: tuple[int, int],
    ) -> None:
        self._batch_size, length, self._noise_dim = sizes
        self._data, self._sampler = data, data.segments(episodes, length)
        self._shard, self._seed = shard, seed

    def draw(self, number: int) -> list[MicroBatch]:
        """Return this process's micro-batches of the batch with this number."""
        rng = np.random.default_rng([*self._seed, number])
        batch = self._sampler.draw(self._batch_size, rng)
        size, length = batch.mask.shape
        noise = rng.random((size, length + 1, self._noise_dim), dtype=np.float32)
        seed = int(rng.integers(2**63))
        row_groups = self._shard.rows(batch.mask.sum(1))
        if len(row_groups[0]) == size:
            return [MicroBatch(batch, noise, seed)]
        # Micro-batches differ in their seeds in every process, so that dropout does too.
        seeds = itertools.count(seed + self._shard.rank, self._shard.world_size)
        return [
            MicroBatch(_take(batch, rows), noise[rows], micro_seed % 2**63)
            for rows, micro_seed in zip(row_groups, seeds, strict=False)
        ]

    def iterate(self, number: int) -> Generator[list[MicroBatch], None, None]:
        """Yield the batches from this number onwards, prefetched if they come from a file."""
        batches = (self.draw(each) for each in itertools.count(number))
        return batches if self._data.in_memory else prefetch_items(batches)


def _take(batch: SegmentBatch, rows: NDArray[np.integer]) -> SegmentBatch:
    return SegmentBatch(index_rows(batch.observation, rows), *(leaf[rows] for leaf in batch[1:]))


class BatchLosses:
    """Losses of whole batches, with or without their gradients.

    Args:
        runtime: device, precision and processes.
        model: model on the runtime's device.
    """

    def __init__(self, runtime: Runtime, model: WorldModel) -> None:
        self._runtime, self._model = runtime, model

    def backward(self, micro_batches: Sequence[MicroBatch]) -> Terms:
        """Add the gradient of a batch to the parameters' gradients.

        Gradients are averaged over processes once, after the last micro-batch. DistributedData-
        Parallel would overlap this with the backward pass, but it would have to search the graph in
        every update for parameters without a gradient, which some models have at first.

        Returns:
            The loss as "loss", and its terms; detached scalars.
        """
        terms: Terms = defaultdict(self._zero)
        for micro_batch, weight in zip(micro_batches, self._weights(micro_batches), strict=True):
            loss, loss_terms = self._loss(micro_batch)
            (loss * weight).backward()
            for name, value in {"loss": loss.detach(), **loss_terms}.items():
                terms[name] = terms[name] + value * weight
        self._runtime.average_gradients(self._model.parameters())
        return dict(terms)

    @torch.no_grad()
    def mean(self, batches: Iterable[Sequence[MicroBatch]]) -> Terms:
        """Return the loss as "loss" and its terms, each averaged over batches."""
        terms: Terms = defaultdict(self._zero)
        count = 0
        for micro_batches in batches:
            count += 1
            weights = self._weights(micro_batches)
            for micro_batch, weight in zip(micro_batches, weights, strict=True):
                loss, loss_terms = self._loss(micro_batch)
                for name, value in {"loss": loss, **loss_terms}.items():
                    terms[name] = terms[name] + value * weight
        return {name: value / count for name, value in terms.items()}

    def _loss(self, micro_batch: MicroBatch) -> tuple[Tensor, Terms]:
        device = self._runtime.device
        segment = as_segment(micro_batch.batch, device)
        noise = torch.from_numpy(micro_batch.noise).to(device)
        with seeded(micro_batch.seed, device), global_batch(), self._runtime.autocast():
            return self._model.loss(segment, noise)

    def _weights(self, micro_batches: Sequence[MicroBatch]) -> list[float]:
        """Return the weight of each micro-batch: its share of the real transitions."""
        if len(micro_batches) == 1:
            return [1.0]
        lengths = [float(micro_batch.batch.mask.sum()) for micro_batch in micro_batches]
        totals = torch.tensor(lengths, device=self._runtime.device)
        with global_batch():
            totals = all_reduce_sum(totals)
        weights: list[float] = (totals / totals.sum()).tolist()
        return weights

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self._runtime.device)
