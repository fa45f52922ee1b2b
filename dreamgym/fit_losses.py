"""Losses of whole batches, whatever pieces they are worked on in, and in however many processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from dreamgym.device import seeded
from dreamgym.fit_batches import Piece
from dreamgym.models import WorldModel, as_segment, shared_batches, whole

if TYPE_CHECKING:
    from lightning_fabric import Fabric

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
        with seeded(piece.seed, device), shared_batches(), self._fabric.autocast():
            return self._model.loss(segment, noise)

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
