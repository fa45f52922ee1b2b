"""Observations of one image, and vectors beside it, as patches of a frozen vision model."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from dreamgym.errors import PretrainedError
from dreamgym.models.nn.codecs import Units
from dreamgym.models.nn.encoding_cache import EncodingCache
from dreamgym.models.nn.layers import autocast_disabled
from dreamgym.models.nn.observation_codec import ObservationParts
from dreamgym.models.nn.pretrained import FrozenEncoder
from dreamgym.models.observations import Observation, get_part, is_image, observation_boxes
from dreamgym.models.patches.config import PatchConfig

COLOURS = 3

ENCODE_BATCH = 64
"""Images encoded in one call: more need more memory and save no time."""


GIGABYTE = 10**9


class Normalisation(NamedTuple):
    """Mean and standard deviation of pixels in [0, 1], by colour, that an encoder was fed with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class PatchSenses(ObservationParts):
    """Converts observations to patches and standardised vectors, and back.

    Args:
        space: a Box of colour images, or a Dict of one such and of vectors.
        config: the encoder, and the size that images are resized to.
        normalisation: of the pixels that the encoder sees.
        units: units of the vectors.
        family: name of the family, for messages.

    Attributes:
        encoder: the frozen vision model.
        width: numbers in a patch.
        grid: patches along a side.
        vector_size: numbers in all vectors together.

    Raises:
        TypeError: the space is of another kind.
        ValueError: the encoder cannot take images of this size.
        PretrainedError: the encoder cannot be loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        space: gym.Space,
        config: PatchConfig,
        normalisation: Normalisation,
        units: Units,
        family: str,
    ) -> None:
        # Spaces come first: the encoder may have to be downloaded.
        images = {key: box for key, box in observation_boxes(space).items() if is_image(box)}
        if len(images) != 1:
            raise TypeError(
                f"the {family} family takes one image, alone or with vectors beside it, and "
                f"{space} has {len(images)}; select the key of one camera, or use a family that "
                "takes several parts, such as rssm"
            )
        super().__init__(space, units, config.image_size)
        if self.pixels[0].channels != COLOURS:
            raise TypeError(
                f"the {family} family takes images of {COLOURS} colours, and those of {space} have "
                f"{self.pixels[0].channels} channels; record them in colour and without stacking: "
                "the model keeps a window of frames itself"
            )
        self.encoder = FrozenEncoder(config.encoder)
        self.width, self.vector_size = self.encoder.width, sum(self.sizes)
        self.grid = self._patches_along(config.image_size, config.encoder)
        for name, values in normalisation._asdict().items():
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.cache = EncodingCache(round(config.cache_gigabytes * GIGABYTE))

    def _patches_along(self, side: int, name: str) -> int:
        """Return how many patches the encoder cuts a side into."""
        patch, only = self.encoder.patch, self.encoder.side
        if not patch:
            raise PretrainedError(f"the encoder {name} has no patches; pass a vision transformer")
        if only and side != only:
            raise ValueError(
                f"image_size={side}: the encoder {name} takes {only} pixels; pass image_size={only}"
            )
        if side % patch:
            raise ValueError(
                f"image_size={side} is not a multiple of the encoder's patch of {patch} pixels; "
                f"pass {max(1, round(side / patch)) * patch}"
            )
        return side // patch

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid**2

    def vector_targets(self, observation: Observation) -> Tensor | None:
        """Return all vectors (..., *shape) as one (..., vector_size) in the model's units.

        None without vectors.
        """
        if not self.sizes:
            return None
        pairs = zip(self.vector_keys, self.vectors, strict=True)
        return torch.cat([c.encode(get_part(observation, key)) for key, c in pairs], -1)

    def image_targets(self, observation: Observation) -> Tensor:
        """Return the image (..., *shape) as (..., 3, image_size, image_size) in [0, 1]."""
        return self.pixels[0].to_float(get_part(observation, self.image_keys[0]))

    @torch.no_grad()
    def encode(self, observation: Observation, *, cached: bool = False) -> Tensor:
        """Return the patches (..., patches, width) of images (..., *shape), without gradient.

        Matrix products have the encoder's own precision, also under autocast.

        Args:
            observation: in the real environment's units.
            cached: whether images that were encoded before are looked up.
        """
        images = get_part(observation, self.image_keys[0])
        lead = images.shape[: images.ndim - self.pixels[0].ndim]
        flat = images.flatten(0, len(lead) - 1)
        if not cached:
            return self._encode(flat).unflatten(0, lead)
        weights = [*self.encoder.frozen.parameters(), self.mean]
        encoded = self.cache.encode(flat.flatten(1), weights, lambda rows: self._encode(flat[rows]))
        return encoded.unflatten(0, lead)

    def _encode(self, images: Tensor) -> Tensor:
        """Return the patches (N, patches, width) of images (N, *shape) of bytes."""
        dtype = next(self.encoder.frozen.parameters()).dtype
        parts = []
        with autocast_disabled(images):
            for some in images.split(ENCODE_BATCH):
                pixels = (self.pixels[0].to_float(some) - self.mean) / self.std
                tokens = self._tokens(pixels.to(dtype)).to(self.mean.dtype)
                if tokens.shape[1] < self.patches:
                    raise PretrainedError(
                        f"{self.encoder.resolved} makes {tokens.shape[1]} tokens of an image, "
                        f"expected at least {self.patches}, one for each patch"
                    )
                parts.append(tokens[:, -self.patches :])
        return torch.cat(parts)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Return the tokens (N, tokens, width) that the encoder makes of normalised images."""
        try:
            return self.encoder.tokens(pixels)
        except ValueError as error:  # positions of one size of image, such as ViT's
            size = pixels.shape[-1]
            raise PretrainedError(
                f"{self.encoder.resolved} does not take images of {size}x{size} pixels: {error}; "
                "pass the image_size that it was trained with, or an encoder that takes any, such "
                "as DINOv2"
            ) from error

    def clear_cache(self) -> None:
        """Release the patches that `encode` keeps."""
        self.cache = EncodingCache(self.cache.max_bytes)
