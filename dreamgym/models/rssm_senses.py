"""What an RSSM sees and what it says of it: observations in and out, in the units it works in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import gymnasium as gym
import torch
from torch import Tensor, nn

from dreamgym.models.observations import Observation, assemble, is_image, part, parts
from dreamgym.models.pixels import Pixels
from dreamgym.models.rssm_config import RSSMConfig
from dreamgym.models.rssm_layers import linear, mlp
from dreamgym.models.statistics import Moments
from dreamgym.models.vectors import Codec
from dreamgym.models.vision import (
    VMC_DECODER,
    VMC_ENCODER,
    ConvDecoder,
    ConvEncoder,
    ConvStack,
    halvings,
    pieces,
)

GREY = 0.5
"""What a network sees as zero in an image whose full range is one."""


class Senses(nn.Module):
    """Encoder and decoder of observations: one for all vectors, and one for each image.

    Args:
        space: a Box or a Dict of them.
        features: width of what is decoded.
        config: sizes and units.

    Attributes:
        dim: width of an encoded observation.
    """

    def __init__(self, space: gym.Space, features: int, config: RSSMConfig) -> None:
        super().__init__()
        boxes = parts(space)
        self.config, self.keys = config, list(boxes)
        units = config.objective.vectors
        self.vector_keys = [key for key, box in boxes.items() if not is_image(box)]
        self.vectors = [Codec(boxes[key], units) for key in self.vector_keys]
        self.image_keys = [key for key, box in boxes.items() if is_image(box)]
        side = config.objective.image_size
        self.pixels = [Pixels(boxes[key], (side, side)) for key in self.image_keys]
        # Lists by place, for a key of a Dict may hold what the name of a module may not.
        self.codecs = nn.ModuleList([*self.vectors, *self.pixels])
        self.sizes = [codec.size for codec in self.vectors]
        self.dim, size = 0, sum(self.sizes)
        if size:
            self.encode_vectors = mlp(size, config.layers, config.units, config)
            trunk = mlp(features, config.layers, config.units, config)
            self.decode_vectors = nn.Sequential(*trunk, linear(config.units, size))
            self.dim += config.units
        self._add_images(features, config)

    def _add_images(self, features: int, config: RSSMConfig) -> None:
        encoders, decoders = [], []
        for pixels in self.pixels:
            down, up = image_stacks(config)
            encoders.append(ConvEncoder(pixels.channels, pixels.size, down))
            decoders.append(ConvDecoder(features, pixels.channels, pixels.size, up))
            self.dim += encoders[-1].dim
        self.encode_images = nn.ModuleList(encoders)
        self.decode_images = nn.ModuleList(decoders)

    def set_moments(self, moments: Mapping[str, Moments]) -> None:
        """Fit the normalisers of the vectors; parts without moments keep theirs."""
        for key, codec in zip(self.vector_keys, self.vectors, strict=True):
            if key in moments:
                codec.set_moments(moments[key])

    def targets(self, observation: Observation) -> list[Tensor]:
        """What the network sees and predicts: all vectors in one (..., n), then each image."""
        made = []
        if self.sizes:
            pairs = zip(self.vector_keys, self.vectors, strict=True)
            made.append(torch.cat([codec.inwards(part(observation, k)) for k, codec in pairs], -1))
        images = zip(self.image_keys, self.pixels, strict=True)
        return made + [pixels.to_float(part(observation, key)) - GREY for key, pixels in images]

    def encode(self, targets: list[Tensor]) -> Tensor:
        """(..., dim) of what `targets` gave."""
        encoders = [self.encode_vectors] if self.sizes else []
        encoded = zip([*encoders, *self.encode_images], targets, strict=True)
        return torch.cat([encoder(target) for encoder, target in encoded], -1)

    def predict(self, features: Tensor) -> list[Tensor]:
        """What `targets` would give, from features (..., features)."""
        made = [self.decode_vectors(features)] if self.sizes else []
        return made + [self._picture(decoder, features) for decoder in self.decode_images]

    def _picture(self, decoder: nn.Module, features: Tensor) -> Tensor:
        """An image (..., channels, height, width) of features (..., features)."""
        image: Tensor = decoder(features)
        # DreamerV3 keeps images within their range, the models before it do not.
        return image.sigmoid() - GREY if self.config.blocks else image

    def error(self, features: Tensor, targets: list[Tensor]) -> Tensor:
        """Weighted sum of squared errors (B, L) of predictions from features (B, L, ...)."""
        objective, lead = self.config.objective, features.shape[:2]
        total = torch.zeros(lead, device=features.device)
        if self.sizes:
            error = (self.decode_vectors(features) - targets[0]).square().sum(-1)
            total = total + objective.vector * error
        flat = features.flatten(0, 1)
        for decoder, wanted in zip(self.decode_images, targets[bool(self.sizes) :], strict=True):
            # Piece by piece up to the sum: what a decoder says of all images is never there.
            pixels = wanted.shape[-2:].numel()
            pairs = zip(pieces(flat, pixels), pieces(wanted.flatten(0, 1), pixels), strict=True)
            errors = [
                (self._picture(decoder, some) - truth).square().flatten(1).sum(-1)
                for some, truth in pairs
            ]
            total = total + objective.image * torch.cat(errors).unflatten(0, lead)
        return total

    def decode(self, features: Tensor) -> Observation:
        """The observation (B, ...) in the real environment's units, dtype and bounds."""
        predicted, made = self.predict(features), {}
        if self.sizes:
            flat = predicted.pop(0).split(self.sizes, -1)
            for key, codec, values in zip(self.vector_keys, self.vectors, flat, strict=True):
                made[key] = codec.shaped(codec.outwards(values))
        for key, pixels, values in zip(self.image_keys, self.pixels, predicted, strict=True):
            made[key] = pixels.to_bytes(values + GREY)
        return assemble({key: made[key] for key in self.keys})

    def unknown(self, features: Tensor, margin: float) -> Tensor:
        """Where (B,) the vectors that features (B, ...) stand for leave the data's range."""
        return self.outside(self.decode_vectors(features), margin)

    def outside(self, vectors: Tensor, margin: float) -> Tensor:
        """Where (B,) vectors (B, n), as `decode_vectors` gives them, leave the data's range."""
        flat = vectors.split(self.sizes, -1)
        pairs = zip(self.vectors, flat, strict=True)
        outside = [codec.unknown(codec.outwards(values), margin) for codec, values in pairs]
        return torch.stack(outside).any(0)


def image_stacks(config: RSSMConfig) -> tuple[ConvStack, ConvStack]:
    """The convolutions that a config asks for on its images, and those back.

    Without blocks they are those of V-M-C, as PlaNet and Dreamer have them; with blocks those of
    DreamerV3 (kernel 5, the channels times 2, 3, 4 and 4, down to 4 by 4, every layer normalised).
    """
    depth = config.image_depth
    if not config.blocks:
        # Dreamer v1 has relu in its convolutions and elu elsewhere.
        act = "relu" if config.norm == "none" else config.activation
        width = depth / VMC_ENCODER.depths[0]
        down, up = (replace(stack, activation=act) for stack in (VMC_ENCODER, VMC_DECODER))
        return down.scaled(width), up.scaled(width)
    count = halvings(config.objective.image_size, 4)
    depths = tuple(depth * min(times, 4) for times in range(2, 2 + count))
    down = ConvStack(
        depths=depths,
        kernels=(5,) * count,
        padding="same",
        activation=config.activation,
        norm="rms" if config.norm == "rms" else "layer",
    )
    return down, replace(down, depths=depths[::-1])
