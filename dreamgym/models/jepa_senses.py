"""What a JEPA sees, and what a probe reads off its embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from dreamgym.models import vit
from dreamgym.models.jepa_batch import moments
from dreamgym.models.jepa_config import JEPAConfig
from dreamgym.models.observations import Observation, assemble, is_image, part, parts
from dreamgym.models.pixels import Pixels
from dreamgym.models.pretrained_encoder import PREFIX, PretrainedEncoder
from dreamgym.models.statistics import Moments
from dreamgym.models.vectors import Codec
from dreamgym.models.vision import VMC_DECODER, VMC_ENCODER, ConvDecoder, ConvEncoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALLEST_SQUARE = 1e-12


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
        self.vectors = nn.ModuleList(Codec(boxes[key], "standard") for key in self.vector_keys)
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

    def set_moments(self, by_key: Mapping[str, Moments]) -> None:
        """Fit the normalisers of the vectors; parts without moments keep theirs."""
        for key, codec in zip(self.vector_keys, self.vectors, strict=True):
            if key in by_key:
                codec.set_moments(by_key[key])  # type: ignore[operator]

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

    An embedding says what can be foretold, and little of what cannot, such as the spin after a
    blow. So what is not read off an embedding at one step is in part not read off at the next
    either: `unread` says how much a real observation has of it, and `persistence` what share of
    that is left after a step, as a regression of the one on the other (an autoregression of the
    probe's errors) has it.

    Args:
        senses: whose observations it reads off.
        config: sizes, and which parts.

    Attributes:
        whole: whether it has every part of the observation.
        carried: how many numbers of what is unread a state carries: all of the vectors, or none
            where nothing is decoded.
    """

    squared: Tensor
    lagged: Tensor

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
        self.carried = sum(senses.sizes) if self.whole else 0
        if self.carried:
            # Moments of what is unread, and of that with what was a step before.
            for name in ("squared", "lagged"):
                self.register_buffer(name, torch.zeros(self.carried))

    def vectors(self, embeddings: Tensor) -> Tensor:
        """Standardised vectors (..., n) read off embeddings (..., D)."""
        return self.linear(embeddings) + self.bent(embeddings)

    def unread(self, embeddings: Tensor, observation: Observation) -> Tensor:
        """What vectors (..., n) of observations have beyond what embeddings (..., D) tell."""
        return self._senses[0].standard(observation) - self.vectors(embeddings)

    @property
    def persistence(self) -> Tensor:
        """Share (n,) of what is unread that stays so in the next step.

        It is fitted on what the predictor expects, without a step's noise and grounding.
        """
        return (self.lagged / self.squared.clamp(min=SMALLEST_SQUARE)).clamp(0.0, 1.0)

    @torch.no_grad()
    def remember_unread(self, before: Tensor, after: Tensor, mask: Tensor, share: Tensor) -> None:
        """Let the moments follow a batch of them.

        Args:
            before: (B, L, n) unread of real embeddings.
            after: (B, L, n) of what is predicted to follow them.
            mask: (B, L) bool, true where these are real.
            share: of the batch in the moments.
        """
        both = torch.cat([before.square(), before * after], -1)
        found = moments(both.flatten(0, 1).float(), mask.flatten()).mean
        for moment, mean in zip((self.squared, self.lagged), found.chunk(2, -1), strict=True):
            moment.lerp_(mean, share)

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

    def decode(self, embeddings: Tensor, unread: Tensor | None = None) -> Observation:
        """Observations (B, ...) read off embeddings (B, D), in types and bounds of the space.

        Args:
            embeddings: (B, D).
            unread: (B, n) of their vectors, to be added; None for nothing.
        """
        made = {}
        if self._senses[0].sizes:
            vectors = self.vectors(embeddings)
            made = self.shown(vectors if unread is None else vectors + unread)
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
