"""Parts of transformers over categorical latents, arranged for inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.nn.latents import Categoricals
from dreamgym.models.nn.packed import Packing
from dreamgym.models.nn.transformer import Block


def attend_once(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Return the attention (B, heads, 1, n) of one query for each row.

    On a CPU the library's kernel takes almost twice the time with one query. At least one key must
    be seen.

    Args:
        query: (B, heads, 1, n).
        key: (B, heads, T, n).
        value: (B, heads, T, n).
        bias: (B or 1, heads or 1, 1, T), minus infinity where a key is not seen.
    """
    scores = query @ key.mT * query.shape[-1] ** -0.5 + bias
    return scores.softmax(-1) @ value


class PackedMixture:
    """Layers on pairs of latent and action, of which the first has no bias.

    A product with one-hot latents is the sum of one row of the matrix for each categorical.

    Args:
        layers: the layers.
        latent: distribution of the latents.
        packing: arrangement of the products.
    """

    def __init__(self, layers: nn.Sequential, latent: Categoricals, packing: Packing) -> None:
        first, *rest = layers
        weight: Tensor = first.weight.detach()  # type: ignore[operator]
        count, classes = latent.shape
        self.table = weight[:, : latent.size].to(packing.dtype).t().contiguous()
        self.actions = packing.linear(weight[:, latent.size :], None)
        self.rest = packing.chain(rest)
        self.offsets = torch.arange(count, device=packing.device) * classes

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return mixtures (B, T, width).

        Args:
            latents: (B, T, stoch) classes.
            actions: (B, T, A) encoded.
        """
        index = (latents.long() + self.offsets).flatten(0, 1)
        mixed = F.embedding_bag(index, self.table, mode="sum").float()
        mixed = self.rest(mixed + self.actions(actions.flatten(0, 1)))
        return mixed.unflatten(0, latents.shape[:2])


class PackedBlock:
    """`Block` for inference, without the mixing of values.

    Args:
        block: the block whose weights are used.
        packing: arrangement of the products.
    """

    def __init__(self, block: Block, packing: Packing) -> None:
        attention = block.attention
        self.heads, self.pre_norm = attention.heads, block.pre_norm
        parts = [attention.query, attention.key, attention.value]
        biased = attention.out.bias is not None
        bias = torch.cat([part.bias for part in parts]) if biased else None
        self.joint = packing.linear(torch.cat([part.weight for part in parts]), bias)
        self.out = packing.linear(attention.out.weight, attention.out.bias)
        self.norm_attention = packing.chain([attention.norm])
        self.mlp = packing.chain([block.widen, torch.nn.ReLU(), block.narrow])
        self.norm = packing.chain([block.norm])

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, heads, T, width / heads) of x (B, T, width)."""
        normed = self.norm_attention(x) if self.pre_norm else x
        joint = self.joint(normed.flatten(0, 1)).unflatten(0, x.shape[:2])
        query, key, value = joint.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Return the block's outputs (..., width) for its inputs and the mixed values."""
        lead = x.shape[:-1]
        x, mixed = x.flatten(0, -2), mixed.flatten(0, -2)
        x = x + self.out(mixed)
        if self.pre_norm:
            return (x + self.mlp(self.norm(x))).unflatten(0, lead)
        x = self.norm_attention(x)
        return self.norm(x + self.mlp(x)).unflatten(0, lead)
