"""The predictor of DINO-WM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.dino_wm.config import DINOWMConfig
from dreamgym.models.nn.layers import LayerNorm


class Attention(nn.Module):
    """Pre-norm self-attention of patches, within a frame and to the frames before it."""

    def __init__(self, width: int, config: DINOWMConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = LayerNorm(width)
        self.joint = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend within x (B, N, width) where mask (N, N) is true."""
        joint = self.joint(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = (leaf.transpose(1, 2) for leaf in joint.unbind(2))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and an MLP, both pre-norm and residual."""

    def __init__(self, width: int, config: DINOWMConfig) -> None:
        super().__init__()
        self.attention = Attention(width, config)
        self.mlp = nn.Sequential(
            LayerNorm(width),
            nn.Linear(width, config.mlp),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.mlp, width),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Apply the block to x (B, N, width)."""
        x = self.attention(x, mask)
        return x + self.mlp(x)


class Predictor(nn.Module):
    """A transformer over the patches of a window, causal by frames (arXiv 2411.04983, section 3).

    The output at a patch is the same patch of the next frame. There is no projection after the last
    norm, as in the authors' code.

    Args:
        patches: patches of a frame.
        width: numbers in a patch, embedded vectors and action included.
        config: sizes.
    """

    def __init__(self, patches: int, width: int, config: DINOWMConfig) -> None:
        super().__init__()
        self.patches = patches
        self.position = nn.Parameter(torch.randn(config.context * patches, width))
        self.blocks = nn.ModuleList(Block(width, config) for _ in range(config.blocks))
        self.norm = LayerNorm(width)

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (B, T, patches, width), T at most the context, to the same shape."""
        x = frames.flatten(1, 2)
        x = x + self.position[: x.shape[1]]
        frame = torch.arange(x.shape[1], device=x.device) // self.patches
        mask = frame.unsqueeze(-1) >= frame
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x).unflatten(1, (-1, self.patches))
