"""Means over the valid rows of a batch, in one process or across several.

Padding never counts. If several processes share a batch (data parallelism), sums run over all of
them, with their gradients: a statistic of the batch is that of the global batch, not of one
process's part.
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
    """Treat each process's batch as its share of one global batch, inside the block.

    Without a process group this changes nothing. Outside the block, sums stay within the process.
    """
    global _sharing
    before, _sharing = _sharing, dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        _sharing = before


def processes() -> int:
    """Return the number of processes that share the current batch."""
    return dist.get_world_size() if _sharing else 1


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes, with gradients summed over processes too."""

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
    """Sum a value over all processes that share the batch; with one process, return it unchanged.

    Gradients are summed as well, so that averaging gradients over processes, as data parallelism
    does, gives the gradient of one process on the global batch.
    """
    if processes() == 1:
        return value
    result: Tensor = _AllReduceSum.apply(value)
    return result


def float64_on_host(values: Tensor) -> Tensor:
    """Return values in float64 and the host's memory, since not every device has float64."""
    return values.cpu().double()


def root_mean_square(values: Tensor) -> float:
    """Return the root mean square of values of any size, in float64: float32 squares overflow."""
    return float(float64_on_host(values).square().mean().sqrt())


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of values where the mask is true, as a scalar.

    Args:
        values: (...); summed in float32 or a wider dtype.
        mask: (...) bool, broadcast against values.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    mask = mask.expand_as(values)
    total, count = torch.where(mask, values, 0.0).sum(), mask.sum()
    if processes() > 1:
        total, count = all_reduce_sum(torch.stack([total, count.to(total.dtype)]))
    return total / count.clamp(min=1)


def evenly_spaced(mask: Tensor, count: int) -> Tensor:
    """Return the indices of at most `count` evenly spaced valid rows.

    Segments start at random places of their episodes, so evenly spaced rows are a random sample.

    Args:
        mask: (N,) bool.
        count: number of rows, over all processes that share the batch.
    """
    valid = mask.nonzero().squeeze(1)
    taken = min(max(1, count // processes()), len(valid))
    return valid[torch.arange(taken, device=valid.device) * len(valid) // max(1, taken)]
