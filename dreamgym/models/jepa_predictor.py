"""The predictor of LeWM: a causal transformer over a few frames, conditioned on actions.

Maes et al., "LeWorldModel" (2026), arXiv 2603.19312. The conditioning is AdaLN-zero of Peebles and
Xie, "Scalable diffusion models with transformers" (2023), arXiv 2212.09748, section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.exact import Linear
from dreamgym.models.jepa_batch import BatchNorm

SMOOTHED_ACTION = 10
"""Channels that an action is first brought to."""


class PredictorSizes(NamedTuple):
    """What a predictor is made of, see `JEPAConfig`."""

    width: int
    context: int
    blocks: int
    heads: int
    head_width: int
    mlp: int
    dropout: float
    gate: float


class ActionEmbedding(nn.Module):
    """Actions (B, T, A) as conditions (B, T, width): a convolution over one step, then an MLP."""

    def __init__(self, actions: int, width: int) -> None:
        super().__init__()
        self.smooth = nn.Conv1d(actions, SMOOTHED_ACTION, 1)
        self.embed = nn.Sequential(
            nn.Linear(SMOOTHED_ACTION, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )

    def forward(self, actions: Tensor) -> Tensor:
        """Embed (B, T, A) floats; gives (B, T, width)."""
        return self.embed(self.smooth(actions.mT).mT)


class Attention(nn.Module):
    """Masked self-attention with heads of any width and one joint projection without a bias."""

    def __init__(self, sizes: PredictorSizes) -> None:
        super().__init__()
        inner = sizes.heads * sizes.head_width
        self.heads, self.dropout = sizes.heads, sizes.dropout
        self.norm = nn.LayerNorm(sizes.width)
        self.joint = nn.Linear(sizes.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, sizes.width)
        self.drop = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend within (B, T, width), to where the mask (B or 1, 1, T, T) is true."""
        joint = self.joint(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = (leaf.transpose(1, 2) for leaf in joint.unbind(2))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.drop(self.out(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition.

    The modulation's weights begin with a spread of `gate`: at zero, which is AdaLN-zero, a fresh
    block is the identity.
    """

    def __init__(self, sizes: PredictorSizes) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.mlp = nn.Sequential(
            nn.LayerNorm(sizes.width),
            nn.Linear(sizes.width, sizes.mlp),
            nn.GELU(),
            nn.Dropout(sizes.dropout),
            nn.Linear(sizes.mlp, sizes.width),
            nn.Dropout(sizes.dropout),
        )
        self.norm_attention = nn.LayerNorm(sizes.width, eps=1e-6, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(sizes.width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(sizes.width, 6 * sizes.width)
        nn.init.normal_(self.modulation.weight, std=sizes.gate)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
        """One block on (B, T, width) under a condition of the same shape."""
        modulation = self.modulation(F.silu(condition)).chunk(6, -1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x + gate * self.attention(self.norm_attention(x) * (1 + scale) + shift, mask)
        return x + gate_mlp * self.mlp(self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp)


class Predictor(nn.Module):
    """From embeddings and actions of up to `context` frames to what comes after each of them."""

    def __init__(self, sizes: PredictorSizes) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(sizes.context, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, embeddings: Tensor, conditions: Tensor, seen: Tensor | None = None) -> Tensor:
        """Predict; causal, so that what comes after a frame is said from it and those before.

        Args:
            embeddings: (B, T, width), T at most the context.
            conditions: (B, T, width) of the actions that leave these frames.
            seen: (B, T) bool, false on slots that hold no frame yet: they are attended to by
                none, and the first frame that is seen has the first position. None: all are seen.

        Returns:
            (B, T, width).
        """
        length = embeddings.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=embeddings.device).tril()
        if seen is None:
            x, mask = embeddings + self.position[:length], causal.view(1, 1, length, length)
        else:
            place = (seen.long().cumsum(-1) - 1).clamp(min=0)
            x = embeddings + self.position[place]
            # A slot always sees itself: nothing is divided by an empty sum.
            own = torch.eye(length, dtype=torch.bool, device=embeddings.device)
            mask = ((causal & seen.unsqueeze(1)) | own).unsqueeze(1)
        for block in self.blocks:
            x = block(x, conditions, mask)
        return self.norm(x)


class Projector(nn.Module):
    """Linear, batch norm, GELU, linear: between a transformer's output and the embedding space."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inwards = nn.Linear(inputs, hidden)
        self.norm = BatchNorm(hidden)
        self.outwards = Linear(hidden, outputs)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project (..., inputs) to (..., outputs); mask (...) is false on padding, in training."""
        return self.outwards(F.gelu(self.norm(self.inwards(values), mask)))
