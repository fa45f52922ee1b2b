"""Building blocks of a JEPA: the predictor, observation encoders and the probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.jepa.config import JEPAConfig
from dreamgym.models.jepa.pretrained import PREFIX, PretrainedEncoder
from dreamgym.models.nn import vit
from dreamgym.models.nn.batch_norm import BatchNorm, moments
from dreamgym.models.nn.codecs import VectorCodec
from dreamgym.models.nn.conv import VMC_DECODER, VMC_ENCODER, ConvDecoder, ConvEncoder, Pixels
from dreamgym.models.nn.layers import Linear
from dreamgym.models.observations import (
    Observation,
    get_part,
    is_image,
    join_parts,
    observation_boxes,
)
from dreamgym.models.statistics import Moments

SMOOTHED_ACTION = 10
"""Channels that actions are first projected to, as in LeWM."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SMALLEST_SQUARE = 1e-12


class Projector(nn.Module):
    """Linear, batch norm, GELU, linear: from a network's output to the embedding space."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inwards = nn.Linear(inputs, hidden)
        self.norm = BatchNorm(hidden)
        self.outwards = Linear(hidden, outputs)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project (..., inputs) to (..., outputs); `mask` (...) is that of `BatchNorm.forward`."""
        return self.outwards(F.gelu(self.norm(self.inwards(values), mask)))


class ActionEmbedding(nn.Module):
    """Embeds actions for the predictor: a convolution of kernel size one, then an MLP."""

    def __init__(self, actions: int, width: int) -> None:
        super().__init__()
        self.smooth = nn.Conv1d(actions, SMOOTHED_ACTION, 1)
        self.embed = nn.Sequential(
            nn.Linear(SMOOTHED_ACTION, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )

    def forward(self, actions: Tensor) -> Tensor:
        """Embed encoded actions (B, T, A) as (B, T, width)."""
        return self.embed(self.smooth(actions.mT).mT)


class Attention(nn.Module):
    """Masked multi-head self-attention with a joint projection without bias."""

    def __init__(self, config: JEPAConfig) -> None:
        super().__init__()
        width, inner = config.embedding, config.heads * config.head_width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = nn.LayerNorm(width)
        self.joint = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend within x (B, T, width) where mask (B or 1, 1, T, T) is true."""
        joint = self.joint(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = (leaf.transpose(1, 2) for leaf in joint.unbind(2))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.drop(self.out(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Transformer block whose norms are modulated (AdaLN) by the action embedding.

    With `gate` zero the modulation is AdaLN-zero: an untrained block is the identity.
    """

    def __init__(self, config: JEPAConfig) -> None:
        super().__init__()
        width = config.embedding
        self.attention = Attention(config)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.mlp),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.mlp, width),
            nn.Dropout(config.dropout),
        )
        self.norm_attention = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.normal_(self.modulation.weight, std=config.gate)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (B, T, width).
            condition: (B, T, width) embedded actions.
            mask: (B or 1, 1, T, T) bool, true where attention is allowed.
        """
        modulation = self.modulation(F.silu(condition)).chunk(6, -1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x + gate * self.attention(self.norm_attention(x) * (1 + scale) + shift, mask)
        return x + gate_mlp * self.mlp(self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp)


class Predictor(nn.Module):
    """Causal transformer over frames; the output at a frame encodes the embedding after it."""

    def __init__(self, config: JEPAConfig) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(config.context, config.embedding))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.embedding)

    def forward(self, embeddings: Tensor, conditions: Tensor, seen: Tensor | None = None) -> Tensor:
        """Predict causally: the output at a frame depends on this frame and those before it.

        Args:
            embeddings: (B, T, width), with T at most the context.
            conditions: (B, T, width) embeddings of the actions taken at these frames.
            seen: (B, T) bool, false on slots that hold no frame yet. These are not attended to, and
                the first seen frame gets the first position. None: all slots hold a frame.

        Returns:
            (B, T, width).
        """
        length = embeddings.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=embeddings.device).tril()
        if seen is None:
            x, mask = embeddings + self.position[:length], causal.view(1, 1, length, length)
        else:
            position = (seen.long().cumsum(-1) - 1).clamp(min=0)
            x = embeddings + self.position[position]
            # A slot always attends to itself, so that no softmax is over an empty set.
            diagonal = torch.eye(length, dtype=torch.bool, device=embeddings.device)
            mask = ((causal & seen.unsqueeze(1)) | diagonal).unsqueeze(1)
        for block in self.blocks:
            x = block(x, conditions, mask)
        return self.norm(x)


class ImageEncoder(nn.Module):
    """Resizes and normalises images and applies the encoder that the config names.

    Attributes:
        dim: width of the output.
        mean: (channels, 1, 1) mean of pixels in [0, 1]; ImageNet's for three channels, else 0.5.
        std: (channels, 1, 1) standard deviation of pixels; ImageNet's for three channels, else 0.5.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, box: gym.spaces.Box, config: JEPAConfig) -> None:
        super().__init__()
        side = config.image_size
        self.pixels = Pixels(box, (side, side))
        channels = self.pixels.channels
        is_colour = channels == len(IMAGENET_MEAN)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            by_channel = torch.tensor(values if is_colour else (0.5,) * channels)
            self.register_buffer(name, by_channel.view(-1, 1, 1))
        self.network = _image_network(channels, config)
        self.dim: int = self.network.dim

    def forward(self, images: Tensor) -> Tensor:
        """Encode uint8 images (B, *shape) as (B, dim)."""
        return self.network((self.pixels.to_float(images) - self.mean) / self.std)


def _image_network(channels: int, config: JEPAConfig) -> Any:
    name, side = config.image_encoder, config.image_size
    if name == "conv":
        return ConvEncoder(channels, (side, side), VMC_ENCODER.scaled(config.image_width))
    if name.startswith(PREFIX):
        return PretrainedEncoder(name.removeprefix(PREFIX))
    sizes, patch = vit.parse(name)
    return vit.ViT(channels, side, patch, sizes)


class ObservationCodec(nn.Module):
    """Encodes observations, and converts standardised vectors and float images back to them.

    Args:
        space: a Box, or a Dict of them.
        config: sizes, and the kind of image encoder.

    Attributes:
        dim: width of the encoding.
        vector_sizes: number of elements in each vector part.
        images: encoders of the image parts.
    """

    def __init__(self, space: gym.Space, config: JEPAConfig) -> None:
        super().__init__()
        boxes = observation_boxes(space)
        self.vector_keys = [key for key, box in boxes.items() if not is_image(box)]
        self.image_keys = [key for key, box in boxes.items() if is_image(box)]
        self.vectors = nn.ModuleList(
            VectorCodec(boxes[key], "standard") for key in self.vector_keys
        )
        self.images = nn.ModuleList(ImageEncoder(boxes[key], config) for key in self.image_keys)
        self.vector_sizes = [int(np.prod(boxes[key].shape)) for key in self.vector_keys]
        self.dim = sum(encoder.dim for encoder in self.image_encoders.values())
        if self.vector_keys:
            self.encode_vectors = nn.Sequential(
                nn.Linear(self.vector_size, config.width),
                nn.SiLU(),
                nn.Linear(config.width, config.width),
            )
            self.dim += config.width

    @property
    def vector_size(self) -> int:
        """Number of elements in all vector parts together."""
        return sum(self.vector_sizes)

    @property
    def vector_codecs(self) -> dict[str, VectorCodec]:
        """The normalisers of the vector parts by key."""
        return dict(zip(self.vector_keys, cast(list[VectorCodec], list(self.vectors)), strict=True))

    @property
    def image_encoders(self) -> dict[str, ImageEncoder]:
        """The encoders of the image parts by key."""
        return dict(zip(self.image_keys, cast(list[ImageEncoder], list(self.images)), strict=True))

    def set_moments(self, by_key: Mapping[str, Moments]) -> None:
        """Fit the normalisers of the vectors; parts without moments keep theirs."""
        for key, codec in self.vector_codecs.items():
            if key in by_key:
                codec.set_moments(by_key[key])

    def forward(self, observation: Observation) -> Tensor:
        """Encode observations with any leading dimensions (...) as (..., dim)."""
        encoded = [self.encode_vectors(self.standardise(observation))] if self.vector_keys else []
        for key, encoder in self.image_encoders.items():
            images = get_part(observation, key)
            lead = images.shape[: images.ndim - encoder.pixels.ndim]
            encoded.append(encoder(images.flatten(0, len(lead) - 1)).unflatten(0, lead))
        return torch.cat(encoded, -1)

    def standardise(self, observation: Observation) -> Tensor:
        """Return all vector parts (..., *shape), standardised and concatenated: (..., n)."""
        parts = [c.encode(get_part(observation, key)) for key, c in self.vector_codecs.items()]
        return torch.cat(parts, -1)

    def float_images(self, observation: Observation) -> list[Tensor]:
        """Return the image parts at the working size as floats (..., channels, side, side)."""
        return [
            encoder.pixels.to_float(get_part(observation, key))
            for key, encoder in self.image_encoders.items()
        ]

    def to_observation(self, vectors: Tensor | None, images: Sequence[Tensor]) -> Observation:
        """Convert network outputs to an observation within the types and bounds of the space.

        Args:
            vectors: (B, n) standardised; None leaves the vector parts out.
            images: floats (B, channels, side, side) of every image part; empty leaves them out.
        """
        parts = {}
        if vectors is not None:
            split = vectors.split(self.vector_sizes, -1)
            for (key, codec), values in zip(self.vector_codecs.items(), split, strict=True):
                parts[key] = codec.to_space(codec.decode(values))
        if images:
            for (key, encoder), pixels in zip(self.image_encoders.items(), images, strict=True):
                parts[key] = encoder.pixels.to_bytes(pixels)
        return join_parts(parts)

    def outside_data(self, vectors: Tensor, margin: float) -> Tensor:
        """Return where standardised vectors (B, n) leave the widened data range: (B,) bool."""
        split = vectors.split(self.vector_sizes, -1)
        outside = [
            codec.outside_data(codec.decode(values), margin)
            for codec, values in zip(self.vector_codecs.values(), split, strict=True)
        ]
        return torch.stack(outside).any(0)


class Probe(nn.Module):
    """Decodes embeddings without shaping them: no gradient flows from its loss into them.

    An embedding contains what can be predicted and little of what cannot, such as the spin after a
    collision. The difference between an observed vector and its probed value (the residual) is
    therefore correlated from one step to the next. The probe fits this as an AR(1) process, and
    `residual_ar1` is the factor by which a residual decays in one step.

    Args:
        codec: encoders of the observations to decode; only their sizes are used.
        config: sizes, and the parts to decode.

    Attributes:
        vector_size: number of elements in the decoded vectors; 0 without vectors.
        images: decoders of the image parts; empty unless the config probes them.
        decodes_all: whether every part of the observation is decoded.
        residual_size: number of elements in the residual that a state carries: all vectors, or 0 if
            the model cannot decode.
    """

    squared: Tensor
    lagged: Tensor

    def __init__(self, codec: ObservationCodec, config: JEPAConfig) -> None:
        super().__init__()
        self.vector_size = codec.vector_size
        if self.vector_size:
            # Most of the state is linear in the embedding; the MLP fits the remainder.
            self.linear = nn.Linear(config.embedding, self.vector_size)
            self.bent = nn.Sequential(
                nn.Linear(config.embedding, config.width),
                nn.SiLU(),
                nn.Linear(config.width, self.vector_size, bias=False),
            )
        encoders = codec.image_encoders.values() if config.probe == "all" else ()
        stack = VMC_DECODER.scaled(config.image_width)
        self.images = nn.ModuleList(
            ConvDecoder(config.embedding, e.pixels.channels, e.pixels.size, stack) for e in encoders
        )
        self.decodes_all = len(self.images) == len(codec.images)
        self.residual_size = self.vector_size if self.decodes_all else 0
        if self.residual_size:
            # Running means of residual[t]**2 and of residual[t] * residual[t + 1].
            for name in ("squared", "lagged"):
                self.register_buffer(name, torch.zeros(self.residual_size))

    def vectors(self, embeddings: Tensor) -> Tensor:
        """Decode embeddings (..., D) into standardised vectors (..., n)."""
        return self.linear(embeddings) + self.bent(embeddings)

    def decode(self, embeddings: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Decode embeddings (..., D).

        Returns:
            Standardised vectors (..., n), or None without vectors, and float images
            (..., channels, side, side) of each image part that is probed.
        """
        vectors = self.vectors(embeddings) if self.vector_size else None
        return vectors, [decoder(embeddings) for decoder in self.images]

    def error(self, embeddings: Tensor, vectors: Tensor | None, images: Sequence[Tensor]) -> Tensor:
        """Return the mean squared error (...) of decoded embeddings, summed over the parts.

        Args:
            embeddings: (..., D); they receive no gradient.
            vectors: (..., n) standardised targets; None without vectors.
            images: target images (..., channels, side, side) of each image part that is probed.
        """
        decoded_vectors, decoded_images = self.decode(embeddings.detach())
        errors = []
        if decoded_vectors is not None and vectors is not None:
            errors.append((decoded_vectors - vectors).square().mean(-1))
        for decoded, target in zip(decoded_images, images, strict=True):
            errors.append((decoded - target).square().flatten(-3).mean(-1))
        return torch.stack(errors).sum(0)

    @property
    def residual_ar1(self) -> Tensor:
        """AR(1) coefficient (n,) of the residual, in [0, 1]."""
        return (self.lagged / self.squared.clamp(min=SMALLEST_SQUARE)).clamp(0.0, 1.0)

    @torch.no_grad()
    def update_residual_moments(
        self, before: Tensor, after: Tensor, mask: Tensor, momentum: Tensor
    ) -> None:
        """Update the running moments behind `residual_ar1` with a batch.

        Args:
            before: (B, L, n) residuals at real embeddings.
            after: (B, L, n) residuals at the predictions from these embeddings, which contain
                neither the noise nor the correction of a dreamed step.
            mask: (B, L) bool, false on padding.
            momentum: weight of the batch.
        """
        both = torch.cat([before.square(), before * after], -1)
        batch = moments(both.flatten(0, 1).float(), mask.flatten()).mean
        for moment, mean in zip((self.squared, self.lagged), batch.chunk(2, -1), strict=True):
            moment.lerp_(mean, momentum)
