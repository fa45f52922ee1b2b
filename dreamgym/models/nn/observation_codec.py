"""Encoder and decoder of observations: vectors, images, and Dicts of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gymnasium as gym
import torch
from torch import Tensor, nn

from dreamgym.models.nn.codecs import Units, VectorCodec
from dreamgym.models.nn.conv import (
    ConvDecoder,
    ConvEncoder,
    ConvStack,
    Pixels,
    has_batch_norm,
    pieces,
)
from dreamgym.models.nn.dense import dense_layers, linear
from dreamgym.models.observations import (
    Observation,
    get_part,
    is_image,
    join_parts,
    observation_boxes,
)
from dreamgym.models.statistics import Moments

MID_GREY = 0.5
"""Pixel value, in [0, 1], that networks see as zero."""


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes and units of an `ObservationCodec`.

    Attributes:
        vector_units: units in which vectors are encoded and predicted.
        layers: hidden layers of the vector encoder and of the vector decoder.
        width: width of these layers.
        norm: norm of these layers; see `dense.norm`.
        activation: activation of these layers.
        image_size: side in pixels that images are resized to.
        down: convolutions of the image encoder.
        up: convolutions of the image decoder.
        bounded_images: whether decoded pixels are limited to [0, 1] by a sigmoid.
        vector: weight of the vectors' squared errors.
        image: weight of the images' squared errors.
    """

    vector_units: Units
    layers: int
    width: int
    norm: str
    activation: str
    image_size: int
    down: ConvStack
    up: ConvStack
    bounded_images: bool
    vector: float
    image: float


class ObservationParts(nn.Module):
    """Conversion of observations to what networks see and predict, and back.

    Args:
        space: a Box or a Dict of Boxes.
        units: units of the vectors.
        side: side in pixels that images are resized to.

    Attributes:
        sizes: widths of the vectors.
    """

    def __init__(self, space: gym.Space, units: Units, side: int) -> None:
        super().__init__()
        boxes = observation_boxes(space)
        self.keys = list(boxes)
        self.vector_keys = [key for key, box in boxes.items() if not is_image(box)]
        self.vectors = [VectorCodec(boxes[key], units) for key in self.vector_keys]
        self.image_keys = [key for key, box in boxes.items() if is_image(box)]
        self.pixels = [Pixels(boxes[key], (side, side)) for key in self.image_keys]
        # Lists by index: a key of a Dict may not be a valid module name.
        self.codecs = nn.ModuleList([*self.vectors, *self.pixels])
        self.sizes = [codec.size for codec in self.vectors]

    def set_moments(self, moments: Mapping[str, Moments]) -> None:
        """Fit the normalisers of the vectors; parts without moments are left as they are."""
        for key, codec in zip(self.vector_keys, self.vectors, strict=True):
            if key in moments:
                codec.set_moments(moments[key])

    def targets(self, observation: Observation) -> list[Tensor]:
        """Return what networks see and predict: all vectors as one (..., n), then each image."""
        targets = []
        if self.sizes:
            pairs = zip(self.vector_keys, self.vectors, strict=True)
            encoded = [codec.encode(get_part(observation, key)) for key, codec in pairs]
            targets.append(torch.cat(encoded, -1))
        for key, pixels in zip(self.image_keys, self.pixels, strict=True):
            targets.append(pixels.to_float(get_part(observation, key)) - MID_GREY)
        return targets

    def to_observation(self, predicted: list[Tensor]) -> Observation:
        """Return an observation (B, ...) in the space's units, dtypes and bounds.

        Args:
            predicted: predictions of the outputs of `targets`.
        """
        predicted, parts = [*predicted], {}
        if self.sizes:
            vectors = predicted.pop(0).split(self.sizes, -1)
            for key, codec, values in zip(self.vector_keys, self.vectors, vectors, strict=True):
                parts[key] = codec.to_space(codec.decode(values))
        for key, pixels, values in zip(self.image_keys, self.pixels, predicted, strict=True):
            parts[key] = pixels.to_bytes(values + MID_GREY)
        return join_parts({key: parts[key] for key in self.keys})

    def outside_data(self, vectors: Tensor, margin: float) -> Tensor:
        """Return where (B,) outputs (B, n) of `decode_vectors` leave the data's range.

        Args:
            vectors: (B, n).
            margin: widening of the range on each side, as a share of it.
        """
        parts = zip(self.vectors, vectors.split(self.sizes, -1), strict=True)
        outside = [codec.outside_data(codec.decode(values), margin) for codec, values in parts]
        return torch.stack(outside).any(0)


class ObservationCodec(ObservationParts):
    """Encoder and decoder of observations: one for all vectors, and one for each image.

    Args:
        space: a Box or a Dict of Boxes.
        features: width of the input of the decoders.
        config: sizes, layers and weights.

    Attributes:
        dim: width of an encoded observation.
    """

    def __init__(self, space: gym.Space, features: int, config: CodecConfig) -> None:
        super().__init__(space, config.vector_units, config.image_size)
        self.config = config
        self.dim, size = 0, sum(self.sizes)
        if size:
            self.encode_vectors = dense_layers(size, config.layers, config.width, config)
            trunk = dense_layers(features, config.layers, config.width, config)
            self.decode_vectors = nn.Sequential(*trunk, linear(config.width, size))
            self.dim += config.width
        encoders, decoders = [], []
        for pixels in self.pixels:
            encoders.append(ConvEncoder(pixels.channels, pixels.size, config.down))
            decoders.append(ConvDecoder(features, pixels.channels, pixels.size, config.up))
            self.dim += encoders[-1].dim
        self.encode_images = nn.ModuleList(encoders)
        self.decode_images = nn.ModuleList(decoders)

    def encode(self, targets: list[Tensor], mask: Tensor | None = None) -> Tensor:
        """Encode observations.

        Args:
            targets: outputs of `targets`.
            mask: (...) bool, false on padding; read by batch norms in training only.

        Returns:
            (..., dim).
        """
        encoded = [self.encode_vectors(targets[0])] if self.sizes else []
        images = zip(self.encode_images, targets[bool(self.sizes) :], strict=True)
        return torch.cat([*encoded, *(encode(image, mask) for encode, image in images)], -1)

    def predict(self, features: Tensor) -> list[Tensor]:
        """Return predictions of the outputs of `targets`, from features (..., features)."""
        vectors = [self.decode_vectors(features)] if self.sizes else []
        return vectors + [self._decode_image(decoder, features) for decoder in self.decode_images]

    def _decode_image(
        self, decoder: nn.Module, features: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return an image (..., channels, height, width) for features (..., features)."""
        image: Tensor = decoder(features, mask)
        return image.sigmoid() - MID_GREY if self.config.bounded_images else image

    def error(self, features: Tensor, targets: list[Tensor], mask: Tensor | None = None) -> Tensor:
        """Return the weighted sum of squared errors (B, L).

        Args:
            features: (B, L, features).
            targets: outputs of `targets`, (B, L, ...) each.
            mask: (B, L) bool, false on padding; read by batch norms in training only.
        """
        lead = features.shape[:2]
        total = torch.zeros(lead, device=features.device)
        if self.sizes:
            error = (self.decode_vectors(features) - targets[0]).square().sum(-1)
            total = total + self.config.vector * error
        flat = features.flatten(0, 1)
        images = targets[bool(self.sizes) :]
        for decoder, target in zip(self.decode_images, images, strict=True):
            joint = self.training and mask is not None and has_batch_norm(decoder)
            parts: list[tuple[Tensor, ...]] = [(flat,), (target.flatten(0, 1),)]
            if not joint:
                # Summed piece by piece, so that all decoded images are never in memory at once.
                pixels = target.shape[-2:].numel()
                parts = [pieces(part[0], pixels) for part in parts]
            decoded = (self._decode_image(decoder, x, mask if joint else None) for x in parts[0])
            errors = [
                (image - truth).square().flatten(1).sum(-1)
                for image, truth in zip(decoded, parts[1], strict=True)
            ]
            total = total + self.config.image * torch.cat(errors).unflatten(0, lead)
        return total

    def decode(self, features: Tensor) -> Observation:
        """Return the observation (B, ...) in the space's units, dtypes and bounds."""
        return self.to_observation(self.predict(features))
