"""BatchMoments over the real rows of a batch, shared between processes or not: see `masked`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.jepa.config import JEPAConfig
from dreamgym.models.jepa.pretrained import PREFIX, PretrainedEncoder
from dreamgym.models.nn import vit
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
from dreamgym.models.reduction import all_reduce_sum
from dreamgym.models.statistics import Moments


class BatchMoments(NamedTuple):
    """Of the real rows of a batch.

    Attributes:
        rows: how many there are; no less than one, for division.
        mean: their mean.
        variance: their mean squared distance from it.
    """

    rows: Tensor
    mean: Tensor
    variance: Tensor


def moments(values: Tensor, mask: Tensor) -> BatchMoments:
    """BatchMoments over the first dimension.

    Args:
        values: (N, ..., D).
        mask: (N, ...) bool, true where a row is real.

    Returns:
        rows (..., 1), mean (..., D) and variance (..., D).
    """
    weight = mask.to(values.dtype).unsqueeze(-1)
    count = all_reduce_sum(weight.sum(0)).clamp(min=1.0)
    mean = all_reduce_sum((values * weight).sum(0)) / count
    variance = all_reduce_sum(((values - mean).square() * weight).sum(0)) / count
    return BatchMoments(count, mean, variance)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the real rows only; in eval mode exact row by row.

    Its parameters and buffers are those of `torch.nn.BatchNorm1d`.
    """

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            values: (..., D).
            mask: (...) bool, true where a row is real; needed in training only.
        """
        mean, variance = self.running_mean, self.running_var
        if self.training and mask is not None:
            found = moments(values.flatten(0, -2).float(), mask.flatten())
            mean, variance = found.mean, found.variance
            self._remember(found)
        scale = self.weight * torch.rsqrt(variance + self.eps)  # type: ignore[operator, arg-type]
        return values * scale + (self.bias - mean * scale)  # type: ignore[operator]

    @torch.no_grad()
    def _remember(self, found: BatchMoments) -> None:
        unbiased = found.variance * found.rows / (found.rows - 1.0).clamp(min=1.0)
        momentum = self.momentum or 0.0
        self.running_mean.lerp_(found.mean, momentum)  # type: ignore[union-attr]
        self.running_var.lerp_(unbiased, momentum)  # type: ignore[union-attr]
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]


SMOOTHED_ACTION = 10

"""Channels that an action is first brought to."""


class PredictorSizes(NamedTuple):
    """What a predictor is made of, see `JEPAConfig`."""

    width: int
    context: int
    blocks: int
    heads: int
    head_width: int
    mlp: int
    dropout: float
    gate: float


class ActionEmbedding(nn.Module):
    """Actions (B, T, A) as conditions (B, T, width): a convolution over one step, then an MLP."""

    def __init__(self, actions: int, width: int) -> None:
        super().__init__()
        self.smooth = nn.Conv1d(actions, SMOOTHED_ACTION, 1)
        self.embed = nn.Sequential(
            nn.Linear(SMOOTHED_ACTION, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )

    def forward(self, actions: Tensor) -> Tensor:
        """Embed (B, T, A) floats; gives (B, T, width)."""
        return self.embed(self.smooth(actions.mT).mT)


class Attention(nn.Module):
    """Masked self-attention with heads of any width and one joint projection without a bias."""

    def __init__(self, sizes: PredictorSizes) -> None:
        super().__init__()
        inner = sizes.heads * sizes.head_width
        self.heads, self.dropout = sizes.heads, sizes.dropout
        self.norm = nn.LayerNorm(sizes.width)
        self.joint = nn.Linear(sizes.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, sizes.width)
        self.drop = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend within (B, T, width), to where the mask (B or 1, 1, T, T) is true."""
        joint = self.joint(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = (leaf.transpose(1, 2) for leaf in joint.unbind(2))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.drop(self.out(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition.

    The modulation's weights begin with a spread of `gate`: at zero, which is AdaLN-zero, a fresh
    block is the identity.
    """

    def __init__(self, sizes: PredictorSizes) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.mlp = nn.Sequential(
            nn.LayerNorm(sizes.width),
            nn.Linear(sizes.width, sizes.mlp),
            nn.GELU(),
            nn.Dropout(sizes.dropout),
            nn.Linear(sizes.mlp, sizes.width),
            nn.Dropout(sizes.dropout),
        )
        self.norm_attention = nn.LayerNorm(sizes.width, eps=1e-6, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(sizes.width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(sizes.width, 6 * sizes.width)
        nn.init.normal_(self.modulation.weight, std=sizes.gate)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
        """One block on (B, T, width) under a condition of the same shape."""
        modulation = self.modulation(F.silu(condition)).chunk(6, -1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x + gate * self.attention(self.norm_attention(x) * (1 + scale) + shift, mask)
        return x + gate_mlp * self.mlp(self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp)


class Predictor(nn.Module):
    """From embeddings and actions of up to `context` frames to what comes after each of them."""

    def __init__(self, sizes: PredictorSizes) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(sizes.context, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, embeddings: Tensor, conditions: Tensor, seen: Tensor | None = None) -> Tensor:
        """Predict; causal, so that what comes after a frame is said from it and those before.

        Args:
            embeddings: (B, T, width), T at most the context.
            conditions: (B, T, width) of the actions that leave these frames.
            seen: (B, T) bool, false on slots that hold no frame yet: they are attended to by
                none, and the first frame that is seen has the first position. None: all are seen.

        Returns:
            (B, T, width).
        """
        length = embeddings.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=embeddings.device).tril()
        if seen is None:
            x, mask = embeddings + self.position[:length], causal.view(1, 1, length, length)
        else:
            place = (seen.long().cumsum(-1) - 1).clamp(min=0)
            x = embeddings + self.position[place]
            # A slot always sees itself: nothing is divided by an empty sum.
            own = torch.eye(length, dtype=torch.bool, device=embeddings.device)
            mask = ((causal & seen.unsqueeze(1)) | own).unsqueeze(1)
        for block in self.blocks:
            x = block(x, conditions, mask)
        return self.norm(x)


class Projector(nn.Module):
    """Linear, batch norm, GELU, linear: between a transformer's output and the embedding space."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inwards = nn.Linear(inputs, hidden)
        self.norm = BatchNorm(hidden)
        self.outwards = Linear(hidden, outputs)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project (..., inputs) to (..., outputs); mask (...) is false on padding, in training."""
        return self.outwards(F.gelu(self.norm(self.inwards(values), mask)))


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


class ObservationCodec(nn.Module):
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
        boxes = observation_boxes(space)
        self.vector_keys = [key for key, box in boxes.items() if not is_image(box)]
        self.image_keys = [key for key, box in boxes.items() if is_image(box)]
        self.vectors = nn.ModuleList(
            VectorCodec(boxes[key], "standard") for key in self.vector_keys
        )
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
        inwards = [codec.encode(get_part(observation, key)) for key, codec in pairs]  # type: ignore[operator]
        return torch.cat(inwards, -1)

    def forward(self, observation: Observation) -> Tensor:
        """Encode observations with any leading dimensions (...); gives (..., dim)."""
        encoded = [self.encode_vectors(self.standard(observation))] if self.sizes else []
        for key, encoder in zip(self.image_keys, self.images, strict=True):
            images = get_part(observation, key)
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

    def __init__(self, senses: ObservationCodec, config: JEPAConfig) -> None:
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
            wanted = encoder.pixels.to_float(get_part(observation, key))
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
        return join_parts(made)

    def shown(self, vectors: Tensor) -> dict[str, Tensor]:
        """Parts (B, ...) of an observation that vectors (B, n) of `vectors` stand for, by key."""
        senses = self._senses[0]
        flat = vectors.split(senses.sizes, -1)
        return {
            key: codec.to_space(codec.decode(values))  # type: ignore[operator]
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
            codec.outside_data(codec.decode(values), margin)  # type: ignore[operator]
            for codec, values in zip(senses.vectors, flat, strict=True)
        ]
        return torch.stack(outside).any(0)

    def _pictured(self) -> list[tuple[str, Any, Any]]:
        senses = self._senses[0]
        count = len(self.images)
        return list(
            zip(senses.image_keys[:count], list(senses.images)[:count], self.images, strict=True)
        )
