"""Batch normalisation over the real rows of a batch: padding has no influence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamgym.models.reduction import all_reduce_sum


class BatchMoments(NamedTuple):
    """Moments of the real rows of a batch, without its padding.

    Attributes:
        rows: (..., 1) number of real rows, at least one.
        mean: (..., D) mean.
        variance: (..., D) biased variance.
    """

    rows: Tensor
    mean: Tensor
    variance: Tensor


def moments(values: Tensor, mask: Tensor) -> BatchMoments:
    """Return the moments over the first dimension, of the global batch under data parallelism.

    Args:
        values: (N, ..., D).
        mask: (N, ...) bool, false on padding.
    """
    weight = mask.to(values.dtype).unsqueeze(-1)
    count = all_reduce_sum(weight.sum(0)).clamp(min=1.0)
    mean = all_reduce_sum((values * weight).sum(0)) / count
    variance = all_reduce_sum(((values - mean).square() * weight).sum(0)) / count
    return BatchMoments(count, mean, variance)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that ignores padding; in eval mode, rows are independent.

    Parameters and buffers are those of `torch.nn.BatchNorm1d`.
    """

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise values.

        Args:
            values: (..., D).
            mask: (...) bool, false on padding; used in training mode only, where None normalises
                by the running statistics.
        """
        mean, variance = self.running_mean, self.running_var
        if self.training and mask is not None:
            batch = moments(values.flatten(0, -2).float(), mask.flatten())
            mean, variance = batch.mean, batch.variance
            self._update_running_statistics(batch)
        scale = self.weight * torch.rsqrt(variance + self.eps)  # type: ignore[operator, arg-type]
        return values * scale + (self.bias - mean * scale)  # type: ignore[operator]

    @torch.no_grad()
    def _update_running_statistics(self, batch: BatchMoments) -> None:
        unbiased = batch.variance * batch.rows / (batch.rows - 1.0).clamp(min=1.0)
        momentum = self.momentum or 0.0
        self.running_mean.lerp_(batch.mean, momentum)  # type: ignore[union-attr]
        self.running_var.lerp_(unbiased, momentum)  # type: ignore[union-attr]
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
