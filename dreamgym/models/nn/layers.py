"""What stays exact where matrix products are in a lower precision (`torch.autocast`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(values: Tensor) -> Tensor:
    """Values in float32 at least: in less, sums and the tails of distributions are lost."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def autocast_disabled(values: Tensor) -> torch.autocast:
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


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers; the output is in the precision of its weights."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        Linear(width, outputs),
    )


def lstm_cell(gates: Tensor, c: Tensor, *, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """Apply the nonlinear part of an LSTM's step.

    Args:
        gates: (B, 4 hidden) before their activations, in torch's order i, f, g, o.
        c: (B, hidden) previous cell.
        inplace: whether `gates` may be overwritten, which saves memory traffic; only without
            gradients.

    Returns:
        The next h and c.
    """
    sigmoid, tanh = (torch.sigmoid_, torch.tanh_) if inplace else (torch.sigmoid, torch.tanh)
    i, f, g, o = gates.to(c.dtype).chunk(4, -1)
    c = torch.addcmul(sigmoid(f) * c, sigmoid(i), tanh(g))
    return sigmoid(o) * c.tanh(), c


class LSTM(nn.Module):
    """Hochreiter and Schmidhuber (1997), with a forget gate; gates in torch's order i, f, g, o.

    `torch.nn.LSTM` has two biases where one does the work, and cannot stand in a compiled graph.

    Args:
        inputs: width of the input.
        hidden: width of h and c.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, inputs).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(4 * hidden).uniform_(-bound, bound))

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            x: (B, inputs).
            h: (B, hidden) the output before.
            c: (B, hidden) the cell before.

        Returns:
            The next h and c.
        """
        return lstm_cell(F.linear(x, self.weight_ih, self.bias) + F.linear(h, self.weight_hh), c)

    def unroll(self, x: Tensor) -> Tensor:
        """All steps from zero state at once, by the fused kernel of the device.

        Args:
            x: (B, L, inputs).

        Returns:
            h after each step, (B, L, hidden).
        """
        zeros = x.new_zeros(1, len(x), self.weight_hh.shape[1])
        weights = [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]
        # In order: biases, layers, dropout, training, both directions, batch first.
        h = torch.lstm(x, [zeros, zeros], weights, True, 1, 0.0, self.training, False, True)[0]
        return h.to(self.bias.dtype)
