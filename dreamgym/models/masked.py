"""Means over what is real in a batch of segments."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values (...) where mask (...) is true; what lies elsewhere does not count."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
