"""Squashing of numbers of any size, and the two-hot categorical over them.

Hafner et al., "Mastering Diverse Domains through World Models", arXiv 2301.04104, equations 9-11.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST_EXPONENT = 20.0


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|), equation 9; same shape."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp|x| - 1), the inverse of symlog; same shape."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


class TwoHot(nn.Module):
    """A number as a categorical over fixed bins, which are the symexp of even steps.

    Args:
        count: of the bins; odd.
    """

    bins: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        # One half and its mirror image: then the bins cancel out exactly.
        half = symexp(torch.linspace(0.0, LARGEST_EXPONENT, count // 2 + 1, dtype=torch.float64))
        bins = torch.cat([-half.flip(0)[:-1], half]).float()
        self.register_buffer("bins", bins, persistent=False)

    def mean(self, logits: Tensor) -> Tensor:
        """The expected number, exactly zero for equal logits.

        Args:
            logits: (..., count).
        """
        chances = logits.softmax(-1)
        middle = len(self.bins) // 2
        # Summed in pairs of opposite bins, or the largest ones would leave their rounding behind.
        over = chances[..., middle + 1 :] - chances[..., :middle].flip(-1)
        return (over * self.bins[middle + 1 :]).sum(-1)

    def encode(self, value: Tensor) -> Tensor:
        """Weights (..., count) on the two bins around each value, with the value as their mean."""
        value = value.clamp(self.bins[0], self.bins[-1])
        last = len(self.bins) - 1
        above = torch.searchsorted(self.bins, value.contiguous()).clamp(1, last)
        low, high = self.bins[above - 1], self.bins[above]
        share = ((value - low) / (high - low)).unsqueeze(-1)
        index = torch.arange(last + 1, device=value.device)
        above = above.unsqueeze(-1)
        return torch.where(index == above, share, 0.0) + torch.where(
            index == above - 1, 1.0 - share, 0.0
        )

    def loss(self, logits: Tensor, value: Tensor) -> Tensor:
        """Cross-entropy with the two-hot value, equation 11.

        Args:
            logits: (..., count).
            value: (...) finite.
        """
        return -(self.encode(value) * logits.log_softmax(-1)).sum(-1)
