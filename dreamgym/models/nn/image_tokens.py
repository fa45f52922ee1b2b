"""The tokeniser of images: a convolutional autoencoder with tokens between its halves.

The networks are those of VQGAN (Esser et al. 2021, arXiv 2012.09841), as IRIS has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym._settings import check_at_least
from dreamgym.models.base import CodeDiagnostic
from dreamgym.models.nn.conv import Double, Pixels, apply_in_pieces
from dreamgym.models.nn.encoding_cache import EncodingCache
from dreamgym.models.nn.layers import at_least_float32
from dreamgym.models.nn.objective import RewardObjective
from dreamgym.models.nn.quantisers import (
    Quantised,
    Quantiser,
    QuantiserConfig,
    quantisation_terms,
    quantiser,
)
from dreamgym.models.reduction import masked_mean

DISTINCT_TOKENS = 1.05
"""Perplexity of the tokens below which all frames look the same."""

GROUPS = 32
"""Groups of a group norm, or fewer if the channels cannot be divided into so many."""

ENCODE_BATCH = 256
"""Frames encoded in one call: more need more memory and save no time."""

EPSILON = 1e-6
"""Added to variances in group norms."""


class TokeniserSizes(Protocol):
    """What a config says about the tokeniser; see `IRISConfig`."""

    @property
    def image_size(self) -> int:
        """Side in pixels that images are resized to."""
        ...

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        ...

    @property
    def residual_blocks(self) -> int:
        """Residual blocks of a level."""
        ...

    @property
    def attention(self) -> tuple[int, ...]:
        """Sides of the levels with attention."""
        ...

    @property
    def latent(self) -> int:
        """Channels of the encoder's output."""
        ...

    @property
    def quantiser(self) -> QuantiserConfig:
        """How the output becomes tokens."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokeniserObjective(RewardObjective):
    """Units of the rewards, and weights of a tokeniser's losses; see `RewardObjective`.

    Attributes:
        absolute: weight of the decoded pixels' absolute error, with pixels in [0, 1].
        squared: weight of their squared error.
        worst: weight of the squared error of a frame's worst pixel.
        commitment: weight of the squared distance of vectors from their codes, which trains the
            encoder; only of a learnt codebook.
    """

    absolute: float = 0.1
    squared: float = 1.0
    worst: float = 0.01
    commitment: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "absolute", "squared", "worst", "commitment")


def check_levels(image_size: int, channels: tuple[int, ...], halvings: int) -> None:
    """Check the levels of convolutional networks on images.

    Raises:
        ValueError: there is no level, one without channels, or the side cannot be halved so often.
    """
    if not channels or min(channels) < 1:
        raise ValueError(f"channels={channels}: expected at least one level, of at least one")
    multiple = 1 << halvings
    if image_size % multiple:
        near = max(multiple, multiple * round(image_size / multiple))
        raise ValueError(
            f"image_size={image_size} cannot be halved {halvings} times: work at {near}, "
            f"or another multiple of {multiple}, or with fewer levels"
        )


class GroupNorm(nn.GroupNorm):
    """Group norm, computed and returned in the dtype of its weights."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(GROUPS, channels), channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, channels, height, width)."""
        x = x.to(self.weight.dtype)
        # Batched over members, as dreams of ensembles are, torch takes no other memory format.
        return super().forward(x if torch.is_grad_enabled() else x.contiguous())


class Residual(nn.Module):
    """Two convolutions with norms before them, added to their input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(inputs), conv(inputs, outputs)
        self.norm2, self.conv2 = GroupNorm(outputs), conv(outputs, outputs)
        self.project = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, height, width) to (B, outputs, height, width)."""
        y = self.conv1(F.silu(self.norm1(x)))
        return self.project(x) + self.conv2(F.silu(self.norm2(y)))


class PixelAttention(nn.Module):
    """Attention of one head between the pixels of an image, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.joint = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each of x (B, channels, height, width)."""
        query, key, value = self.joint(self.norm(x)).flatten(2).mT.chunk(3, -1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.mT.unflatten(-1, x.shape[-2:]))


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution of 3 by 3 that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def blocks(inputs: int, outputs: int, count: int, *, attention: bool) -> list[nn.Module]:
    """Return residual blocks, each followed by attention if asked for."""
    modules: list[nn.Module] = []
    for _ in range(count):
        modules.append(Residual(inputs, outputs))
        if attention:
            modules.append(PixelAttention(outputs))
        inputs = outputs
    return modules


def middle(channels: int) -> list[nn.Module]:
    """Return the blocks at the smallest size."""
    return [
        Residual(channels, channels),
        PixelAttention(channels),
        Residual(channels, channels),
    ]


def last(channels: int, outputs: int) -> list[nn.Module]:
    """Return the layers at the end of an encoder or a decoder."""
    return [GroupNorm(channels), nn.SiLU(), conv(channels, outputs)]


def encoder(inputs: int, config: TokeniserSizes) -> nn.Sequential:
    """Return the network from images to vectors at the pixels of the smallest level."""
    widths, count = config.channels, config.residual_blocks
    layers: list[nn.Module] = [conv(inputs, widths[0])]
    for level, width in enumerate(widths):
        if level:
            layers.append(nn.Conv2d(widths[level - 1], widths[level - 1], 3, 2, padding=1))
        attends = config.image_size >> level in config.attention
        layers += blocks(widths[max(0, level - 1)], width, count, attention=attends)
    return nn.Sequential(*layers, *middle(widths[-1]), *last(widths[-1], config.latent))


def decoder(outputs: int, config: TokeniserSizes) -> nn.Sequential:
    """Return the network from these vectors to images."""
    widths, count = config.channels, config.residual_blocks + 1
    layers: list[nn.Module] = [conv(config.latent, widths[-1]), *middle(widths[-1])]
    for level, width in reversed(list(enumerate(widths))):
        if level + 1 < len(widths):
            layers.append(Double(widths[level + 1]))
        attends = config.image_size >> level in config.attention
        before = widths[min(level + 1, len(widths) - 1)]
        layers += blocks(before, width, count, attention=attends)
    return nn.Sequential(*layers, *last(widths[0], outputs))


class Tokeniser(nn.Module):
    """An autoencoder of images whose latents are tokens.

    Args:
        channels: channels of the images.
        config: sizes.

    Attributes:
        tokens: tokens of an image.
    """

    def __init__(self, channels: int, config: TokeniserSizes) -> None:
        super().__init__()
        self.side = config.image_size >> (len(config.channels) - 1)
        self.tokens, self.pixels = self.side**2, config.image_size**2
        self.encoder, self.decoder = encoder(channels, config), decoder(channels, config)
        self.quantiser = quantiser(config.quantiser)
        self.before = nn.Conv2d(config.latent, self.quantiser.width, 1)
        self.after = nn.Conv2d(self.quantiser.width, config.latent, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.before.weight.dtype

    def latents(self, images: Tensor) -> Tensor:
        """Return the vectors (N, tokens, width), before quantisation, of images in [0, 1].

        Args:
            images: (N, channels, side, side).
        """
        encoded = apply_in_pieces(self.encoder, 2 * images - 1, self.pixels)
        return at_least_float32(self.before(encoded).flatten(2).mT)

    def decode(self, vectors: Tensor) -> Tensor:
        """Return images (N, channels, side, side), around [0, 1], of codes (N, tokens, width)."""
        grid = self.after(vectors.mT.unflatten(-1, (self.side, self.side)))
        return (at_least_float32(apply_in_pieces(self.decoder, grid, self.pixels)) + 1) / 2

    def encode(self, images: Tensor) -> Tensor:
        """Return the tokens (N, tokens) int64 of images (N, channels, side, side) in [0, 1]."""
        parts = images.split(ENCODE_BATCH)
        return torch.cat([self.quantiser(self.latents(part)).tokens for part in parts])


def pixel_error(decoded: Tensor, images: Tensor, objective: TokeniserObjective) -> Tensor:
    """Return the weighted error (N,) of decoded images (N, channels, height, width)."""
    error = (decoded - images).flatten(1)
    squared = error.square()
    return (
        objective.absolute * error.abs().mean(1)
        + objective.squared * squared.mean(1)
        + objective.worst * squared.amax(1)
    )


def autoencoder_terms(
    decoded: Tensor,
    images: Tensor,
    quantised: Quantised,
    weights: TokeniserObjective,
    of: Quantiser,
) -> dict[str, Tensor]:
    """Return the terms of an autoencoder's loss.

    Args:
        decoded: images (N, channels, side, side).
        images: the same, as they are.
        quantised: the codes between them.
        weights: weights of the pixels' errors.
        of: what made the codes.
    """
    parts = {"reconstruction": pixel_error(decoded, images, weights)}
    parts |= quantisation_terms(of, quantised)
    everywhere = images.new_ones((), dtype=torch.bool)
    return {name: masked_mean(values, everywhere) for name, values in parts.items()}


@torch.no_grad()
def token_use(quantiser: Quantiser, tokens: Tensor) -> CodeDiagnostic:
    """Return how tokens (...) use the codes of their quantiser."""
    remedy = "fit for longer (updates), or with more tokeniser_updates"
    return CodeDiagnostic.of(tokens, quantiser.count, DISTINCT_TOKENS, remedy)


def frame_tokens(
    tokeniser: Tokeniser, pixels: Pixels, frames: Tensor, cache: EncodingCache | None = None
) -> Tensor:
    """Return the tokens (..., tokens) int64 of frames (..., *box.shape) of bytes.

    Args:
        tokeniser: what encodes them.
        pixels: how images of the space become its inputs.
        frames: the frames.
        cache: where frames that were encoded before are looked up; None encodes all.
    """
    lead = frames.shape[: frames.ndim - pixels.ndim]
    flat, dtype = frames.flatten(0, len(lead) - 1), tokeniser.dtype

    def encode(some: Tensor) -> Tensor:
        return tokeniser.encode(pixels.to_float(some).to(dtype))

    if cache is None:
        return encode(flat).unflatten(0, lead)
    weights = [*tokeniser.parameters(), *tokeniser.buffers()]
    tokens = cache.encode(flat.flatten(1), weights, lambda rows: encode(flat[rows]))
    return tokens.unflatten(0, lead)
