"""Losses of whole batches, whatever pieces they are worked on in, and in however many processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dreamgym.device import seeded
from dreamgym.fit_batches import Piece
from dreamgym.models import Segment, WorldModel, as_segment, shared_batches, whole

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Terms = dict[str, Tensor]


class _Loss(nn.Module):
    """A model's loss as a forward, which is what Fabric knows to run."""

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, segment: Segment, noise: Tensor) -> tuple[Tensor, Terms]:
        return self.model.loss(segment, noise)


class BatchLosses:
    """A model's losses.

    Args:
        fabric: launched.
        model: put on Fabric's device.
    """

    def __init__(self, fabric: Fabric, model: WorldModel) -> None:
        self._fabric = fabric
        self._loss = fabric.setup_module(_Loss(model))

    def gradient(self, pieces: Sequence[Piece]) -> Terms:
        """Add the gradient of a batch to that of the parameters.

        Returns:
            The loss, as "loss", and its terms; detached scalars.
        """
        terms: Terms = defaultdict(self._zero)
        for k, (piece, share) in enumerate(zip(pieces, self._shares(pieces), strict=True)):
            waits = self._fabric.world_size > 1 and k + 1 < len(pieces)
            with self._fabric.no_backward_sync(self._loss) if waits else nullcontext():
                loss, said = self._of(piece)
                self._fabric.backward(loss * share)
            for name, value in {"loss": loss.detach(), **said}.items():
                terms[name] = terms[name] + value * share
        return dict(terms)

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
        with seeded(piece.seed, device), shared_batches():  # dropout, where there is any
            loss, terms = self._loss(segment, noise)
        return loss, terms

    def _shares(self, pieces: Sequence[Piece]) -> list[float]:
        """How much each piece counts: its share of the real transitions."""
        if len(pieces) == 1:
            return [1.0]
        counts = [float(piece.batch.mask.sum()) for piece in pieces]
        real = torch.tensor(counts, device=self._fabric.device)
        with shared_batches():
            real = whole(real)
        shares: list[float] = (real / real.sum()).tolist()
        return shares

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self._fabric.device)
