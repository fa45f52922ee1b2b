"""What a JEPA sees, and what a probe reads off its embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from dreamgym.models import vit
from dreamgym.models.jepa_config import JEPAConfig
from dreamgym.models.observations import Observation, assemble, is_image, part, parts
from dreamgym.models.pixels import Pixels
from dreamgym.models.pretrained_encoder import PREFIX, PretrainedEncoder
from dreamgym.models.statistics import Moments
from dreamgym.models.vectors import Codec
from dreamgym.models.vision import VMC_DECODER, VMC_ENCODER, ConvDecoder, ConvEncoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageEncoder(nn.Module):
    """An image at the working size, normalised, through one of the encoders.

    Attributes:
        dim: width of the output.
        mean: (channels, 1, 1) of pixels in [0, 1], taken off before encoding; ImageNet's where
            there are three channels.
        std: (channels, 1, 1) likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, box: gym.spaces.Box, config: JEPAConfig) -> None:
        super().__init__()
        side = config.image_size
        self.pixels = Pixels(box, (side, side))
        channels = self.pixels.channels
        colour = channels == len(IMAGENET_MEAN)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            filled = torch.tensor(values if colour else (0.5,) * channels)
            self.register_buffer(name, filled.view(-1, 1, 1))
        self.network = _network(channels, config)
        self.dim: int = self.network.dim

    def forward(self, images: Tensor) -> Tensor:
        """Encode bytes (B, height, width, channels); gives (B, dim)."""
        return self.network((self.pixels.to_float(images) - self.mean) / self.std)


def _network(channels: int, config: JEPAConfig) -> Any:
    name, side = config.image_encoder, config.image_size
    if name == "conv":
        return ConvEncoder(channels, (side, side), VMC_ENCODER)
    if name.startswith(PREFIX):
        return PretrainedEncoder(name.removeprefix(PREFIX))
    sizes, patch = vit.parse(name)
    return vit.ViT(channels, side, patch, sizes)


class Senses(nn.Module):
    """Encoders of all parts of an observation, side by side.

    Args:
        space: a Box or a Dict of them.
        config: sizes and kinds.

    Attributes:
        dim: width of what is encoded.
        images: the images' encoders.
    """

    def __init__(self, space: gym.Space, config: JEPAConfig) -> None:
        super().__init__()
        boxes = parts(space)
        self.vector_keys = [key for key, box in boxes.items() if not is_image(box)]
        self.image_keys = [key for key, box in boxes.items() if is_image(box)]
        self.vectors = nn.ModuleList(Codec(boxes[key], config.vectors) for key in self.vector_keys)
        self.images = nn.ModuleList(ImageEncoder(boxes[key], config) for key in self.image_keys)
        self.sizes = [int(np.prod(boxes[key].shape)) for key in self.vector_keys]
        self.dim = sum(cast(ImageEncoder, encoder).dim for encoder in self.images)
        if self.sizes:
            self.encode_vectors = nn.Sequential(
                nn.Linear(sum(self.sizes), config.width),
                nn.SiLU(),
                nn.Linear(config.width, config.width),
            )
            self.dim += config.width

    def set_moments(self, moments: Mapping[str, Moments]) -> None:
        """Fit the normalisers of the vectors; parts without moments keep theirs."""
        for key, codec in zip(self.vector_keys, self.vectors, strict=True):
            if key in moments:
                codec.set_moments(moments[key])  # type: ignore[operator]

    def standard(self, observation: Observation) -> Tensor:
        """All vectors (..., *shape) in one, standardised: (..., n)."""
        pairs = zip(self.vector_keys, self.vectors, strict=True)
        inwards = [codec.inwards(part(observation, key)) for key, codec in pairs]  # type: ignore[operator]
        return torch.cat(inwards, -1)

    def forward(self, observation: Observation) -> Tensor:
        """Encode observations with any leading dimensions (...); gives (..., dim)."""
        encoded = [self.encode_vectors(self.standard(observation))] if self.sizes else []
        for key, encoder in zip(self.image_keys, self.images, strict=True):
            images = part(observation, key)
            encoded.append(encoder(images.flatten(0, -4)).unflatten(0, images.shape[:-3]))
        return torch.cat(encoded, -1)


class Probe(nn.Module):
    """A decoder of embeddings that does not shape them: it sees them without their gradient.

    Args:
        senses: whose observations it reads off.
        config: sizes, and which parts.

    Attributes:
        whole: whether it has every part of the observation.
    """

    def __init__(self, senses: Senses, config: JEPAConfig) -> None:
        super().__init__()
        # Held, not owned: its normalisers are saved once.
        self._senses = [senses]
        if senses.sizes:
            # Most of the state lies in the embedding linearly; the rest is left to the MLP.
            self.linear = nn.Linear(config.embedding, sum(senses.sizes))
            self.bent = nn.Sequential(
                nn.Linear(config.embedding, config.width),
                nn.SiLU(),
                nn.Linear(config.width, sum(senses.sizes), bias=False),
            )
        pixels = [encoder.pixels for encoder in senses.images]
        wanted = pixels if config.probe == "all" else []
        self.images = nn.ModuleList(
            ConvDecoder(config.embedding, p.channels, p.size, VMC_DECODER)  # type: ignore[union-attr, arg-type]
            for p in wanted
        )
        self.whole = len(wanted) == len(pixels)

    def vectors(self, embeddings: Tensor) -> Tensor:
        """Standardised vectors (..., n) read off embeddings (..., D)."""
        return self.linear(embeddings) + self.bent(embeddings)

    def error(self, embeddings: Tensor, observation: Observation) -> Tensor:
        """Mean squared error (...) of what is read off embeddings (..., D), over its numbers."""
        senses, seen = self._senses[0], embeddings.detach()
        errors = []
        if senses.sizes:
            errors.append((self.vectors(seen) - senses.standard(observation)).square().mean(-1))
        for key, encoder, decoder in self._pictured():
            wanted = encoder.pixels.to_float(part(observation, key))
            errors.append((decoder(seen) - wanted).square().flatten(-3).mean(-1))
        return torch.stack(errors).sum(0)

    def decode(self, embeddings: Tensor) -> Observation:
        """Observations (B, ...) read off embeddings (B, D), in types and bounds of the space."""
        made = self.shown(self.vectors(embeddings)) if self._senses[0].sizes else {}
        for key, encoder, decoder in self._pictured():
            made[key] = encoder.pixels.to_bytes(decoder(embeddings))
        return assemble(made)

    def shown(self, vectors: Tensor) -> dict[str, Tensor]:
        """Parts (B, ...) of an observation that vectors (B, n) of `vectors` stand for, by key."""
        senses = self._senses[0]
        flat = vectors.split(senses.sizes, -1)
        return {
            key: codec.shaped(codec.outwards(values))  # type: ignore[operator]
            for key, codec, values in zip(senses.vector_keys, senses.vectors, flat, strict=True)
        }

    def unknown(self, embeddings: Tensor, margin: float) -> Tensor:
        """Where (B,) the vectors that embeddings (B, D) stand for leave the data's range."""
        return self.outside(self.vectors(embeddings), margin)

    def outside(self, vectors: Tensor, margin: float) -> Tensor:
        """Where (B,) vectors (B, n) of `vectors` leave the data's range."""
        senses = self._senses[0]
        flat = vectors.split(senses.sizes, -1)
        outside = [
            codec.unknown(codec.outwards(values), margin)  # type: ignore[operator]
            for codec, values in zip(senses.vectors, flat, strict=True)
        ]
        return torch.stack(outside).any(0)

    def _pictured(self) -> list[tuple[str, Any, Any]]:
        senses = self._senses[0]
        count = len(self.images)
        return list(
            zip(senses.image_keys[:count], list(senses.images)[:count], self.images, strict=True)
        )
