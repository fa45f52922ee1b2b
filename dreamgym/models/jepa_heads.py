"""What reads a JEPA's embeddings without shaping them, or asks them for the action between two."""

from __future__ import annotations

from torch import nn

from dreamgym.models.exact import Linear

WIDTH = 128


def head(inputs: int, outputs: int) -> nn.Sequential:
    """An MLP of two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, WIDTH),
        nn.SiLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.SiLU(),
        Linear(WIDTH, outputs),
    )
