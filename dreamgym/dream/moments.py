"""Running mean and variance of batches, on the device."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningMoments:
    """Mean and variance of all rows so far, merged batch by batch.

    (Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. 2.1.)

    Args:
        shape: of one row.
        device: where rows come from.
        epsilon: added to the variance before a root is taken.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, epsilon: float = 1e-8) -> None:
        self.epsilon = epsilon
        self.count = torch.zeros((), device=device, dtype=torch.int64)
        self.mean = torch.zeros(shape, device=device)
        self.variance = torch.ones(shape, device=device)

    def update(self, rows: Tensor, weight: Tensor | None = None) -> None:
        """Take in rows.

        Args:
            rows: (N, *shape).
            weight: (N,) bool, which of them count; None for all. If none does, nothing changes.
        """
        count, mean, variance = _moments(rows, weight)
        total = self.count + count
        share = count / total.clamp(min=1)
        shift = mean - self.mean
        between = shift.square() * share * (1 - share)
        self.variance = self.variance * (1 - share) + variance * share + between
        self.mean = self.mean + shift * share
        self.count = total

    def standardise(self, rows: Tensor) -> Tensor:
        """Rows less the mean, over the standard deviation."""
        return (rows - self.mean) / (self.variance + self.epsilon).sqrt()

    def scale(self, rows: Tensor) -> Tensor:
        """Rows over the standard deviation, not shifted."""
        return rows / (self.variance + self.epsilon).sqrt()

    def state_dict(self) -> dict[str, Tensor]:
        """What to save with the agent."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what was saved.

        Raises:
            ValueError: something is missing or of another shape.
        """
        for name, mine in self.state_dict().items():
            if name not in state or state[name].shape != mine.shape:
                given = tuple(state[name].shape) if name in state else "missing"
                raise ValueError(f"{name} is {given}; wanted shape {tuple(mine.shape)}")
            setattr(self, name, state[name].to(mine.device, mine.dtype).clone())


def _moments(rows: Tensor, weight: Tensor | None) -> tuple[Tensor | int, Tensor, Tensor]:
    """How many rows (N, *shape) count, their mean and variance; zeros where none does."""
    if weight is None:
        return rows.shape[0], rows.mean(0), rows.var(0, unbiased=False)
    counted = weight.view(-1, *[1] * (rows.ndim - 1))
    count = weight.sum()
    divisor = count.clamp(min=1)
    mean = torch.where(counted, rows, 0.0).sum(0) / divisor
    # Chosen, not multiplied: a row that does not count may hold anything, NaN included.
    squares = torch.where(counted, (rows - mean).square(), 0.0)
    return count, mean, squares.sum(0) / divisor
