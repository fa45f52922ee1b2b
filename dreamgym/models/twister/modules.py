"""Modules of TWISTER: attention with relative positions, the transformer, heads and predictors."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamgym.models.nn.conv import ConvStack, halvings
from dreamgym.models.nn.dense import LAYER_EPSILON, dense_layers, linear
from dreamgym.models.nn.layers import LayerNorm, Linear, at_least_float32
from dreamgym.models.nn.observation_codec import CodecConfig
from dreamgym.models.nn.transformer import Attention, Block, band
from dreamgym.models.twister.config import TWISTERConfig

LONGEST_WAVE = 10_000.0
"""Longest wavelength of the sinusoids, over two pi."""


class Style(NamedTuple):
    """Norm and activation of dense layers; see `dense.LayerStyle`."""

    norm: str
    activation: str


def head(inputs: int, outputs: int, config: TWISTERConfig) -> nn.Sequential:
    """Return a prediction head on features."""
    style = Style("layer", config.activation)
    hidden = dense_layers(inputs, config.head_layers, config.width, style, bias=False)
    return nn.Sequential(*hidden, linear(config.width if config.head_layers else inputs, outputs))


def predictor(inputs: int, width: int) -> nn.Sequential:
    """Return one of the two networks of a contrastive prediction."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ELU(), Linear(width, width), nn.ELU())


class RelativeAttention(Attention):
    """Attention to the last tokens, by content and by distance (Dai et al., arXiv 1901.02860).

    Args:
        config: sizes.

    Attributes:
        by_content: (heads, width / heads) added to queries where they meet keys.
        by_distance: the same, where they meet distances.
    """

    encoding: Tensor

    def __init__(self, config: TWISTERConfig) -> None:
        super().__init__(config, bias=True)
        self.distance = nn.Linear(config.width, config.width)
        shape = (config.heads, config.width // config.heads)
        self.by_content = nn.Parameter(torch.zeros(shape))
        self.by_distance = nn.Parameter(torch.zeros(shape))
        encoding = sinusoids(config.context + 1, config.width)
        # Saved with the weights, so that a file cannot ask for a context that it has not.
        self.register_buffer("encoding", encoding)

    def distances(self) -> Tensor:
        """Return the distances from 0 to the context, encoded: (heads, context + 1, ...)."""
        return self.distance(self.encoding).unflatten(-1, (self.heads, -1)).transpose(0, 1)

    def mix(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, distance: Tensor, allowed: Tensor
    ) -> Tensor:
        """Return mixed values (B, heads, T, width / heads).

        Args:
            query: (B, heads, T, width / heads).
            key: (B, heads, S, width / heads).
            value: the same.
            distance: (T, S) int64 from each key to each query, within 0 and the context.
            allowed: (B or 1, 1, T, S) bool, where a query may attend to a key.
        """
        near = (query + self.by_distance.unsqueeze(1)) @ self.distances().mT
        index = distance.expand(*near.shape[:2], -1, -1)
        scores = (query + self.by_content.unsqueeze(1)) @ key.mT + near.gather(-1, index)
        scores = at_least_float32(scores) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        weights = nn.functional.dropout(weights, self.dropout, self.training)
        return weights.to(value.dtype) @ value


def sinusoids(count: int, width: int) -> Tensor:
    """Return sines and cosines (count, width) of 0 to count - 1, in turns."""
    rates = LONGEST_WAVE ** -(2 * torch.arange((width + 1) // 2) / width)
    angles = torch.arange(count).unsqueeze(-1) * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


class Transformer(nn.Module):
    """Transformer over tokens, each of which mixes a latent with the action after it.

    Args:
        latent: width of a latent.
        action: width of an encoded action.
        config: sizes.
    """

    def __init__(self, latent: int, action: int, config: TWISTERConfig) -> None:
        super().__init__()
        width, self.context = config.width, config.context
        style = Style("layer", config.activation)
        self.mix = nn.Sequential(
            *dense_layers(latent + action, 1, width, style, bias=False),
            linear(width, width, bias=False),
            LayerNorm(width, eps=LAYER_EPSILON),
        )
        self.blocks = nn.ModuleList(
            Block(RelativeAttention(config), config) for _ in range(config.blocks)
        )

    def forward(self, latents: Tensor, actions: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the outputs (B, T, width) after each pair.

        Args:
            latents: (B, T, latent).
            actions: (B, T, action) encoded.
            known: (B, T) bool, false for pairs that are not there; None if all are.
        """
        x = self.mix(torch.cat([latents, actions], -1))
        distance, within, self_only = band(x.shape[1], x.shape[1], self.context, x.device)
        allowed = within if known is None else within & (known.unsqueeze(1) | self_only)
        allowed = allowed.unsqueeze(-3) if known is not None else allowed[None, None]
        for block in self.blocks:
            x = block(x, distance, allowed)
        return x


class Predictors(nn.Module):
    """The networks of the contrastive loss (arXiv 2503.04416).

    For each number of steps ahead there is one network on features and the actions in between, and
    one on the latent then; a pair is alike by the product of their outputs.

    Args:
        features: width of the features.
        latent: width of a latent.
        action: width of an encoded action.
        config: sizes.
    """

    def __init__(self, features: int, latent: int, action: int, config: TWISTERConfig) -> None:
        super().__init__()
        steps, width = range(config.objective.contrastive_steps), config.width
        self.of_features = nn.ModuleList(predictor(features + k * action, width) for k in steps)
        self.of_latents = nn.ModuleList(predictor(latent, width) for _ in steps)

    def pairs(
        self, features: Tensor, actions: Tensor, latents: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Return what should be alike, (B, T - k, width) twice, for each k steps ahead.

        Args:
            features: (B, T, features).
            actions: (B, T - 1, action) encoded, between them.
            latents: (B, T, latent).
        """
        pairs, length = [], features.shape[1]
        networks = zip(self.of_features, self.of_latents, strict=True)
        for k, (of_features, of_latents) in zip(range(length), networks, strict=False):
            between = [actions[:, first : first + length - k] for first in range(k)]
            inputs = torch.cat([features[:, : length - k], *between], -1)
            pairs.append((of_features(inputs), of_latents(latents[:, k:])))
        return pairs


def codec_config(config: TWISTERConfig) -> CodecConfig:
    """Return the config of the observation codec.

    Images have the published convolutions: kernel 4, stride 2, layer norm over channels, and twice
    the channels in each layer, down to 4 by 4.
    """
    objective = config.objective
    count = halvings(objective.image_size, 4)
    depths = tuple(config.image_depth << layer for layer in range(count))
    down = ConvStack(
        depths=depths,
        kernels=(4,) * count,
        padding="same",
        activation=config.activation,
        norm="layer",
        bias=False,
        norm_grid=False,
    )
    return CodecConfig(
        vector_units=objective.vectors,
        layers=config.layers,
        width=config.units,
        norm="layer",
        activation=config.activation,
        image_size=objective.image_size,
        down=down,
        up=replace(down, depths=depths[::-1]),
        bounded_images=False,
        vector=objective.vector,
        image=objective.image,
    )
