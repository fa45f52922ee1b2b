"""Layers whose outputs stay in full precision under `torch.autocast`, an MLP, and an LSTM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym._device import computes_bfloat16


def at_least_float32(values: Tensor) -> Tensor:
    """Convert to float32 unless wider: half precision is too coarse for sums and distributions."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def autocast_disabled(values: Tensor) -> torch.autocast:
    """Return a context that disables autocast on the device of `values`."""
    return torch.autocast(values.device.type, enabled=False)


class RMSNorm(nn.RMSNorm):
    """Root mean square norm, computed and returned in the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """See `torch.nn.RMSNorm`."""
        return super().forward(x.to(self.weight.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer norm, computed and returned in the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """See `torch.nn.LayerNorm`."""
        return super().forward(x.to(self.weight.dtype))


class Linear(nn.Linear):
    """A dense layer that returns the dtype of its weights, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """See `torch.nn.Linear`."""
        return super().forward(x).to(self.weight.dtype)


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Return an MLP with two hidden layers; its output has the dtype of its weights."""
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
    """An LSTM with forget gate (Hochreiter and Schmidhuber 1997); gates in the order i, f, g, o.

    `torch.nn.LSTM` has a redundant second bias, and cannot be part of a compiled graph.

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
        """Advance by one step.

        Args:
            x: (B, inputs).
            h: (B, hidden) previous output.
            c: (B, hidden) previous cell state.

        Returns:
            The next h and c.
        """
        return lstm_cell(F.linear(x, self.weight_ih, self.bias) + F.linear(h, self.weight_hh), c)

    def unroll(self, x: Tensor) -> Tensor:
        """Run all steps from a zero state with the device's fused kernel.

        Args:
            x: (B, L, inputs).

        Returns:
            The output h after each step, (B, L, hidden).
        """
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and not computes_bfloat16(kind):
            # The fused kernel of such a CPU raises in bfloat16.
            with autocast_disabled(x):
                return self.unroll(x.to(self.bias.dtype))
        zeros = x.new_zeros(1, len(x), self.weight_hh.shape[1])
        weights = [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]
        # Positional: has_biases, num_layers, dropout, train, bidirectional, batch_first.
        h = torch.lstm(x, [zeros, zeros], weights, True, 1, 0.0, self.training, False, True)[0]
        return h.to(self.bias.dtype)
