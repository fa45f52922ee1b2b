"""The batches of a fit: each determined by the seed and its number, whenever it is drawn."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym._device import seeded
from dreamgym.data import AnyDataset, SegmentBatch
from dreamgym.data.segments import prefetch_items
from dreamgym.models import WorldModel
from dreamgym.models.base import as_segment
from dreamgym.models.reduction import all_reduce_sum, global_batch

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
        return batches if self._data.in_memory else prefetch_items(batches)


def _rows(batch: SegmentBatch, place: NDArray[np.integer]) -> SegmentBatch:
    seen = batch.observation
    if isinstance(seen, dict):
        observation = {key: values[place] for key, values in seen.items()}
    else:
        observation = seen[place]
    return SegmentBatch(observation, *(leaf[place] for leaf in batch[1:]))


Terms = dict[str, Tensor]


class BatchLosses:
    """A model's losses.

    Args:
        fabric: launched.
        model: on Fabric's device.
    """

    def __init__(self, fabric: Fabric, model: WorldModel) -> None:
        self._fabric, self._model = fabric, model

    def gradient(self, pieces: Sequence[Piece]) -> Terms:
        """Add the gradient of a batch to that of the parameters.

        Processes average theirs once, after the last piece, in one message. (Fabric's own way, to
        wrap the model, sends them while the rest is computed, but must search the graph in every
        update for parameters that the loss leaves out, as some do at first.)

        Returns:
            The loss, as "loss", and its terms; detached scalars.
        """
        terms: Terms = defaultdict(self._zero)
        for piece, share in zip(pieces, self._shares(pieces), strict=True):
            loss, said = self._of(piece)
            (loss * share).backward()
            for name, value in {"loss": loss.detach(), **said}.items():
                terms[name] = terms[name] + value * share
        if self._fabric.world_size > 1:
            self._average()
        return dict(terms)

    def _average(self) -> None:
        """Give every process the mean of the gradients of all."""
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        sent = torch.cat([gradient.flatten() for gradient in gradients])
        mean = cast("Tensor", self._fabric.all_reduce(sent, reduce_op="mean"))
        parts = mean.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def mean(self, batches: Iterable[Sequence[Piece]]) -> Terms:
        """The loss, as "loss", and its terms, each the mean over batches."""
        terms: Terms = defaultdict(self._zero)
        count = 0
        for pieces in batches:
            count += 1
            for piece, share in zip(pieces, self._shares(pieces), strict=True):
                loss, said = self._of(piece)
                for name, value in {"loss": loss, **said}.items():
                    terms[name] = terms[name] + value * share
        return {name: value / count for name, value in terms.items()}

    def _of(self, piece: Piece) -> tuple[Tensor, Terms]:
        device = self._fabric.device
        segment = as_segment(piece.batch, device)
        noise = torch.from_numpy(piece.noise).to(device)
        # A seed for dropout, where there is any.
        with seeded(piece.seed, device), global_batch(), self._fabric.autocast():
            return self._model.loss(segment, noise)

    def _shares(self, pieces: Sequence[Piece]) -> list[float]:
        """How much each piece counts: its share of the real transitions."""
        if len(pieces) == 1:
            return [1.0]
        counts = [float(piece.batch.mask.sum()) for piece in pieces]
        real = torch.tensor(counts, device=self._fabric.device)
        with global_batch():
            real = all_reduce_sum(real)
        shares: list[float] = (real / real.sum()).tolist()
        return shares

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self._fabric.device)
