"""What stays exact where matrix products are in a lower precision (`torch.autocast`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def full(values: Tensor) -> Tensor:
    """Values in float32 at least: in less, sums and the tails of distributions are lost."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def exactly(values: Tensor) -> torch.autocast:
    """A block where products are computed as they are written, on the device of some values."""
    return torch.autocast(values.device.type, enabled=False)


class RMSNorm(nn.RMSNorm):
    """Root mean square norm, computed and returned in the precision of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """See `torch.nn.RMSNorm`."""
        return super().forward(x.to(self.weight.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer norm, computed and returned in the precision of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """See `torch.nn.LayerNorm`."""
        return super().forward(x.to(self.weight.dtype))


class Linear(nn.Linear):
    """A dense layer whose output is in the precision of its weights, however it was computed."""

    def forward(self, x: Tensor) -> Tensor:
        """See `torch.nn.Linear`."""
        return super().forward(x).to(self.weight.dtype)
