"""Modules of STORM: the transformer over pairs of latent and action, and the heads on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.nn.conv import ConvStack, halvings
from dreamgym.models.nn.dense import linear
from dreamgym.models.nn.layers import LayerNorm
from dreamgym.models.nn.observation_codec import CodecConfig
from dreamgym.models.storm.config import STORMConfig

EPSILON = 1e-6
"""Added to variances in the norms of the transformer."""


def hidden_layers(inputs: int, layers: int, width: int) -> list[nn.Module]:
    """Return the layers of a head before its last: dense without bias, layer norm and ReLU."""
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(inputs, width, bias=False), LayerNorm(width), nn.ReLU()]
        inputs = width
    return modules


def head(outputs: int, config: STORMConfig) -> nn.Sequential:
    """Return a prediction head on the transformer's output."""
    width = config.width
    return nn.Sequential(*hidden_layers(width, config.head_layers, width), linear(width, outputs))


class Attention(nn.Module):
    """Causal self-attention without biases, residual and normalised."""

    def __init__(self, config: STORMConfig) -> None:
        super().__init__()
        width, self.heads, self.dropout = config.width, config.heads, config.dropout
        self.pre_norm = config.pre_norm
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.drop = nn.Dropout(config.dropout)
        self.norm = LayerNorm(width, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within x (B, T, width) to tokens that are not later."""
        normed = self.norm(x) if self.pre_norm else x
        query, key, value = (
            project(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, None, dropout, is_causal=True)
        total = x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return total if self.pre_norm else self.norm(total)


class Block(nn.Module):
    """A transformer block: norms after the residual sums (Vaswani et al. 2017), or before."""

    def __init__(self, config: STORMConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = Attention(config)
        self.widen = nn.Linear(config.width, config.mlp)
        self.narrow = nn.Linear(config.mlp, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.norm = LayerNorm(config.width, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x (B, T, width)."""
        x = self.attention(x)
        if self.pre_norm:
            return x + self.drop(self.narrow(F.relu(self.widen(self.norm(x)))))
        return self.norm(x + self.drop(self.narrow(F.relu(self.widen(x)))))


class Transformer(nn.Module):
    """Causal transformer over tokens, each of which mixes a latent with the action after it.

    arXiv 2310.09615, equation 2 and appendix A.

    Args:
        latent: width of a latent.
        action: width of an encoded action.
        config: sizes.
    """

    def __init__(self, latent: int, action: int, config: STORMConfig) -> None:
        super().__init__()
        width = config.width
        self.mix = nn.Sequential(
            *hidden_layers(latent + action, 1, width),
            nn.Linear(width, width, bias=False),
            LayerNorm(width),
        )
        self.position = nn.Parameter(torch.randn(config.context, width))
        self.norm = LayerNorm(width, eps=EPSILON)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return the outputs (B, T, width) after each pair.

        Args:
            latents: (B, T, latent), with T at most the context; the first has the first position.
            actions: (B, T, action) encoded.
        """
        x = self.mix(torch.cat([latents, actions], -1))
        x = self.norm(x + self.position[: x.shape[1]])
        for block in self.blocks:
            x = block(x)
        return x


def codec_config(config: STORMConfig) -> CodecConfig:
    """Return the config of the observation codec.

    Images have the published convolutions: kernel 4, stride 2, batch norm, and twice the channels
    in each layer, down to 4 by 4.
    """
    objective = config.objective
    count = halvings(objective.image_size, 4)
    depths = tuple(config.image_depth << layer for layer in range(count))
    kernels = (4,) * count
    down = ConvStack(depths=depths, kernels=kernels, padding="same", norm="batch")
    up = ConvStack(depths=depths[::-1], kernels=kernels, padding="same", norm="batch")
    return CodecConfig(
        vector_units=objective.vectors,
        layers=config.layers,
        width=config.units,
        norm="layer",
        activation=config.activation,
        image_size=objective.image_size,
        down=down,
        up=up,
        bounded_images=False,
        vector=objective.vector,
        image=objective.image,
    )
