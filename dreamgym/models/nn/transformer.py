"""Blocks of transformers over time, with norms before or after each part."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.nn.latents import MAX_CLASSES
from dreamgym.models.nn.layers import LayerNorm

EPSILON = 1e-6
"""Added to variances in the norms of the transformer."""


class BlockSizes(Protocol):
    """What a config says about every block."""

    @property
    def width(self) -> int:
        """Width of the tokens."""
        ...

    @property
    def heads(self) -> int:
        """Attention heads, which divide the width."""
        ...

    @property
    def mlp(self) -> int:
        """Width of the hidden layer."""
        ...

    @property
    def pre_norm(self) -> bool:
        """Whether parts normalise their inputs, and not their sums."""
        ...

    @property
    def dropout(self) -> float:
        """Dropout rate in fitting."""
        ...


class LatentTransformerSizes(BlockSizes, Protocol):
    """What a config says about a transformer over categorical latents."""

    @property
    def classes(self) -> int:
        """Classes of each categorical."""
        ...

    @property
    def unimix(self) -> float:
        """Share of the uniform distribution."""
        ...


def check_sizes(config: LatentTransformerSizes) -> None:
    """Check the sizes of a transformer over categorical latents.

    Raises:
        ValueError: heads that do not divide the width, more classes than a byte holds, or a share
            outside of [0, 1).
    """
    if config.width % config.heads:
        raise ValueError(
            f"width={config.width} is not divisible into heads={config.heads} equal heads; pass a "
            "multiple of heads"
        )
    if config.classes > MAX_CLASSES:
        raise ValueError(f"classes={config.classes}: expected at most {MAX_CLASSES}")
    for name in ("dropout", "unimix"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(
                f"{name}={getattr(config, name)}: expected a share of at least 0 and below 1"
            )


def band(
    queries: int, keys: int, context: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which keys the last tokens attend to.

    Args:
        queries: number of the last tokens that attend.
        keys: number of all tokens.
        context: largest distance.
        device: where.

    Returns:
        (queries, keys) each: distances, limited to 0 and the context; where they are within these;
        and where they are zero.
    """
    places = torch.arange(keys, device=device)
    distance = places[keys - queries :].unsqueeze(-1) - places
    within = (distance >= 0) & (distance <= context)
    return distance.clamp(0, context), within, distance == 0


class Attention(nn.Module):
    """Causal self-attention, residual and normalised; a subclass may mix values otherwise.

    Args:
        config: sizes.
        bias: whether the projections have biases.
    """

    def __init__(self, config: BlockSizes, *, bias: bool = False) -> None:
        super().__init__()
        width, self.heads, self.dropout = config.width, config.heads, config.dropout
        self.pre_norm = config.pre_norm
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.drop = nn.Dropout(config.dropout)
        self.norm = LayerNorm(width, eps=EPSILON)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Attend within x (B, T, width).

        Args:
            x: (B, T, width).
            context: what else `mix` needs.
        """
        normed = self.norm(x) if self.pre_norm else x
        query, key, value = (
            project(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = self.mix(query, key, value, *context)
        total = x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return total if self.pre_norm else self.norm(total)

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return mixed values; all are (B, heads, T, width / heads)."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, None, dropout, is_causal=True)


class Block(nn.Module):
    """A transformer block: norms after the residual sums (Vaswani et al. 2017), or before.

    Args:
        attention: its attention.
        config: sizes.
    """

    def __init__(self, attention: Attention, config: BlockSizes) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = attention
        self.widen = nn.Linear(config.width, config.mlp)
        self.narrow = nn.Linear(config.mlp, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.norm = LayerNorm(config.width, eps=EPSILON)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Apply the block to x (B, T, width); `context` is for its attention."""
        x = self.attention(x, *context)
        if self.pre_norm:
            return x + self.drop(self.narrow(F.relu(self.widen(self.norm(x)))))
        return self.norm(x + self.drop(self.narrow(F.relu(self.widen(x)))))
