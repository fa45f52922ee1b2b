"""The tokeniser of Delta-IRIS: an autoencoder of what changes from one frame to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamgym.models.iris.config import DeltaIRISConfig
from dreamgym.models.nn.conv import Double
from dreamgym.models.nn.image_tokens import ENCODE_BATCH, Residual, conv, last
from dreamgym.models.nn.layers import Linear, at_least_float32
from dreamgym.models.nn.quantisers import quantiser


def frame_encoder(inputs: int, outputs: int, config: DeltaIRISConfig) -> nn.Sequential:
    """Return a network from images to a grid."""
    width = config.channels[0]
    layers: list[nn.Module] = [conv(inputs, width)]
    for channels, halved in zip(config.channels, config.halved, strict=True):
        layers.append(Residual(width, channels))
        if halved:
            layers.append(nn.Conv2d(channels, channels, 2, stride=2))
        width = channels
    return nn.Sequential(*layers, *last(width, outputs))


def frame_decoder(inputs: int, outputs: int, config: DeltaIRISConfig) -> nn.Sequential:
    """Return a network from a grid to images."""
    width = config.channels[-1]
    layers: list[nn.Module] = [conv(inputs, width)]
    for channels, halved in zip(config.channels[::-1], config.halved[::-1], strict=True):
        if halved:
            layers.append(Double(width))
        layers.append(Residual(width, channels))
        width = channels
    return nn.Sequential(*layers, *last(width, outputs))


class DeltaTokeniser(nn.Module):
    """An autoencoder of a frame, given the frame before it and the action between them.

    Args:
        channels: channels of the images.
        action: width of an encoded action.
        config: sizes.

    Attributes:
        tokens: tokens of a frame.
    """

    def __init__(self, channels: int, action: int, config: DeltaIRISConfig) -> None:
        super().__init__()
        self.size, self.side, self.parts = config.image_size, config.side, config.token_side
        self.tokens = config.token_side**2
        # An action is one more channel, of numbers that are learnt.
        self.action_image = nn.Linear(action, self.size**2, bias=False)
        self.action_grid = nn.Linear(action, self.side**2, bias=False)
        self.encoder = frame_encoder(2 * channels + 1, config.latent, config)
        self.context = frame_encoder(channels, config.latent, config)
        self.decoder = frame_decoder(2 * config.latent + 1, channels, config)
        self.quantiser = quantiser(config.quantiser)
        numbers = config.latent * (self.side // self.parts) ** 2
        self.before = Linear(numbers, self.quantiser.width)
        self.after = nn.Linear(self.quantiser.width, numbers)

    def latents(self, images: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """Return the vectors (N, tokens, width), before quantisation, of transitions.

        Args:
            images: (N, channels, size, size) in [0, 1].
            action: (N, A) encoded.
            following: like `images`, those after the action.
        """
        plane = self.action_image(action).view(-1, 1, self.size, self.size)
        grid = self.encoder(torch.cat([2 * images - 1, plane, 2 * following - 1], 1))
        part = self.side // self.parts
        patches = grid.unflatten(3, (self.parts, part)).unflatten(2, (self.parts, part))
        # (N, latent, row, y, column, x) -> (N, row x column, latent x y x x)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return at_least_float32(self.before(patches))

    def encode(self, images: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """Return the tokens (N, tokens) int64 of transitions; see `latents`."""
        parts = zip(
            *(leaf.split(ENCODE_BATCH) for leaf in (images, action, following)), strict=True
        )
        return torch.cat([self.quantiser(self.latents(*part)).tokens for part in parts])

    def decode(self, vectors: Tensor, images: Tensor, action: Tensor) -> Tensor:
        """Return the images (N, channels, size, size), around [0, 1], after transitions.

        Args:
            vectors: (N, tokens, width) codes.
            images: (N, channels, size, size) in [0, 1], those before.
            action: (N, A) encoded.
        """
        part = self.side // self.parts
        patches = self.after(vectors).unflatten(1, (self.parts, self.parts))
        patches = patches.unflatten(3, (-1, part, part)).permute(0, 3, 1, 4, 2, 5)
        grid = patches.flatten(4).flatten(2, 3)
        plane = self.action_grid(action).view(-1, 1, self.side, self.side)
        decoded = self.decoder(torch.cat([grid, self.context(2 * images - 1), plane], 1))
        return (at_least_float32(decoded) + 1) / 2
