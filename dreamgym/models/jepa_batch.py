"""Moments over the real rows of a batch, shared between processes or not: see `masked`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamgym.models.masked import whole


class Moments(NamedTuple):
    """Of the real rows of a batch.

    Attributes:
        rows: how many there are; no less than one, for division.
        mean: their mean.
        variance: their mean squared distance from it.
    """

    rows: Tensor
    mean: Tensor
    variance: Tensor


def moments(values: Tensor, mask: Tensor) -> Moments:
    """Moments over the first dimension.

    Args:
        values: (N, ..., D).
        mask: (N, ...) bool, true where a row is real.

    Returns:
        rows (..., 1), mean (..., D) and variance (..., D).
    """
    weight = mask.to(values.dtype).unsqueeze(-1)
    count = whole(weight.sum(0)).clamp(min=1.0)
    mean = whole((values * weight).sum(0)) / count
    variance = whole(((values - mean).square() * weight).sum(0)) / count
    return Moments(count, mean, variance)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the real rows only; in eval mode exact row by row.

    Its parameters and buffers are those of `torch.nn.BatchNorm1d`.
    """

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            values: (..., D).
            mask: (...) bool, true where a row is real; needed in training only.
        """
        mean, variance = self.running_mean, self.running_var
        if self.training and mask is not None:
            found = moments(values.flatten(0, -2).float(), mask.flatten())
            mean, variance = found.mean, found.variance
            self._remember(found)
        scale = self.weight * torch.rsqrt(variance + self.eps)  # type: ignore[operator, arg-type]
        return values * scale + (self.bias - mean * scale)  # type: ignore[operator]

    @torch.no_grad()
    def _remember(self, found: Moments) -> None:
        unbiased = found.variance * found.rows / (found.rows - 1.0).clamp(min=1.0)
        momentum = self.momentum or 0.0
        self.running_mean.lerp_(found.mean, momentum)  # type: ignore[union-attr]
        self.running_var.lerp_(unbiased, momentum)  # type: ignore[union-attr]
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
