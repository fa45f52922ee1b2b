"""Modules of STORM: the transformer over pairs of latent and action, and the heads on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamgym.models.nn.conv import ConvStack, halvings
from dreamgym.models.nn.dense import linear
from dreamgym.models.nn.layers import LayerNorm
from dreamgym.models.nn.observation_codec import CodecConfig
from dreamgym.models.nn.transformer import EPSILON, Attention, Block
from dreamgym.models.storm.config import STORMConfig


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
        self.blocks = nn.ModuleList(Block(Attention(config), config) for _ in range(config.blocks))

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
