"""What a model's heads are made of."""

from __future__ import annotations

from torch import nn

from dreamgym.models.exact import Linear


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers; the output is in the precision of its weights."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        Linear(width, outputs),
    )
