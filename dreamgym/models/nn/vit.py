"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) in the standard sizes.

Pre-norm blocks, with a class token in front. Every weight corresponds to one of `ViTModel` of the
`transformers` library.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPSILON = 1e-12


class ViTSizes(NamedTuple):
    """Width, blocks and heads; the MLP is four times as wide as the tokens."""

    width: int
    blocks: int
    heads: int


SIZES = {
    "tiny": ViTSizes(192, 12, 3),
    "small": ViTSizes(384, 12, 6),
    "base": ViTSizes(768, 12, 12),
    "large": ViTSizes(1024, 24, 16),
}

NAME = re.compile(r"vit_(\w+)_patch(\d+)")


def parse(name: str) -> tuple[ViTSizes, int]:
    """Return the sizes and the patch size of a name such as "vit_tiny_patch14".

    Raises:
        ValueError: the name is not of that form.
    """
    found = NAME.fullmatch(name)
    if not found or found[1] not in SIZES or int(found[2]) < 1:
        raise ValueError(
            f"{name!r} is not a vision transformer: give vit_SIZE_patchN with a size of "
            f"{', '.join(SIZES)}, such as vit_tiny_patch14"
        )
    return SIZES[found[1]], int(found[2])


class Block(nn.Module):
    """Self-attention and an MLP, both pre-norm and residual."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        width, self.heads = sizes.width, sizes.heads
        self.norm_attention = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, tokens, width)."""
        normed = self.norm_attention(x)
        query, key, value = (
            project(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.widen(self.norm_mlp(x))))


class ViT(nn.Module):
    """A vision transformer; its output is the class token.

    Args:
        channels: channels of the images.
        side: height and width of the images.
        patch: height and width of a patch.
        sizes: width, blocks and heads.

    Attributes:
        dim: width of the output.

    Raises:
        ValueError: the side is not a multiple of the patch.
    """

    def __init__(self, channels: int, side: int, patch: int, sizes: ViTSizes) -> None:
        super().__init__()
        if side % patch:
            nearest = max(1, round(side / patch)) * patch
            raise ValueError(
                f"images of {side} x {side} cannot be cut into patches of {patch} x {patch}: "
                f"work at {nearest} pixels"
            )
        self.dim = sizes.width
        tokens = (side // patch) ** 2 + 1
        self.class_token = nn.Parameter(torch.empty(1, 1, sizes.width))
        self.position = nn.Parameter(torch.empty(1, tokens, sizes.width))
        self.patches = nn.Conv2d(channels, sizes.width, patch, patch)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.width, eps=NORM_EPSILON)
        self.apply(_init_weights)
        for token in (self.class_token, self.position):
            nn.init.trunc_normal_(token, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class token (B, dim) of normalised images (B, channels, side, side)."""
        patches = self.patches(images).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def _init_weights(module: nn.Module) -> None:
    """Initialise the weights of one layer."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
