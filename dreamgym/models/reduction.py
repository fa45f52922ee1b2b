"""Means over what is real in a batch of segments, wherever its parts are computed.

Padding never counts. Where several processes share a batch (data parallelism), sums run over all
of them, with their gradients: a statistic of the batch is that of the whole batch, not of a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

_sharing = False


@contextmanager
def global_batch() -> Iterator[None]:
    """Within the block, the batch that a process sees is its share of one that all of them see.

    Without other processes this changes nothing. Outside of it, what a process computes is its own
    affair, whether or not there are others.
    """
    global _sharing
    before, _sharing = _sharing, dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        _sharing = before


def processes() -> int:
    """How many processes share a batch now."""
    return dist.get_world_size() if _sharing else 1


class _Whole(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of a value over all processes that share a batch; of one process, the value itself.

    Gradients are summed likewise, so that the mean of gradients that data parallelism takes is
    the gradient that one process would have found on the whole batch.
    """
    if processes() == 1:
        return value
    result: Tensor = _Whole.apply(value)
    return result


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values (...) where mask is true: a scalar; what lies elsewhere does not count.

    Args:
        values: (...); summed in float32 at least.
        mask: (...) bool, broadcast against values.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    mask = mask.expand_as(values)
    total, count = torch.where(mask, values, 0.0).sum(), mask.sum()
    if processes() > 1:
        total, count = all_reduce_sum(torch.stack([total, count.to(total.dtype)]))
    return total / count.clamp(min=1)
