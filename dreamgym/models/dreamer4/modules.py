"""Modules of Dreamer 4: the tokeniser and the dynamics."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.dreamer4.config import Dreamer4Config
from dreamgym.models.nn.block_causal import EPSILON, Block, Keys, newest, token
from dreamgym.models.nn.dense import linear
from dreamgym.models.nn.layers import RMSNorm, at_least_float32
from dreamgym.models.nn.observation_codec import ObservationParts


class Tokenizer(ObservationParts):
    """Autoencoder of single observations into a few tokens (arXiv 2509.24527).

    The vectors of an observation are one token, images one for each patch. Latent tokens attend to
    these, and these to each other; in the decoder it is the other way round.

    Args:
        space: a Box or a Dict of Boxes.
        config: sizes.

    Raises:
        ValueError: the patch does not divide the side of images.
    """

    allowed: Tensor

    def __init__(self, space: gym.Space, config: Dreamer4Config) -> None:
        objective, width = config.objective, config.tokenizer_width
        super().__init__(space, objective.vectors, objective.image_size)
        self.config = config
        side, rest = divmod(objective.image_size, config.patch)
        if self.pixels and rest:
            raise ValueError(
                f"images of {objective.image_size} pixels cannot be cut into patches of "
                f"{config.patch}: pass a divisor of the side as patch"
            )
        self.shapes = [(pixels.channels, side, side) for pixels in self.pixels]
        vector = [sum(self.sizes)] if self.sizes else []
        numbers = [*vector, *(pixels.channels * config.patch**2 for pixels in self.pixels)]
        self.counts = [1] * len(vector) + [side * side] * len(self.pixels)
        count, latents = sum(self.counts), config.latents
        self.enter = nn.ModuleList(nn.Linear(size, width) for size in numbers)
        self.leave = nn.ModuleList(linear(width, size) for size in numbers)
        self.place = token(count, width)
        self.place_out = token(count, width)
        if self.pixels:
            self.dropped = token(width)
        self.latent = token(latents, width)
        self.latent_out = token(latents, width)
        blocks = config.tokenizer_blocks
        sizes = width, config.heads, config.mlp * width
        self.encoder = nn.ModuleList(Block(*sizes) for _ in range(blocks))
        self.decoder = nn.ModuleList(Block(*sizes) for _ in range(blocks))
        self.norm = RMSNorm(width, eps=EPSILON)
        self.norm_out = RMSNorm(width, eps=EPSILON)
        self.narrow = nn.Linear(width, config.channels)
        self.widen = nn.Linear(config.channels, width)
        is_latent = torch.arange(latents + count) < latents
        # Of latents to all, of others to others; the decoder's is its transpose.
        allowed = is_latent.unsqueeze(1) | ~is_latent
        self.register_buffer("allowed", allowed, persistent=False)

    @property
    def droppable(self) -> int:
        """Patches of the images of an observation."""
        return sum(self.counts) - bool(self.sizes)

    def encode(self, targets: list[Tensor], dropped: Tensor | None = None) -> Tensor:
        """Return the latents (..., tokens, packing x channels) in [-1, 1].

        Args:
            targets: outputs of `targets`.
            dropped: (..., droppable) bool, true for patches that are hidden; None for none.
        """
        parts = [*targets]
        flat = [parts.pop(0).unsqueeze(-2)] if self.sizes else []
        flat += [self._patches(image) for image in parts]
        entered = [enter(part) for enter, part in zip(self.enter, flat, strict=True)]
        seen = torch.cat(entered, -2)
        if dropped is not None and self.pixels:
            hidden = F.pad(dropped, (seen.shape[-2] - dropped.shape[-1], 0), value=False)
            seen = torch.where(hidden.unsqueeze(-1), self.dropped, seen)
        seen = seen + self.place
        x = torch.cat([self.latent.expand(*seen.shape[:-2], -1, -1), seen], -2)
        for block in self.encoder:
            x = block(x, self.allowed)
        latents = self.narrow(self.norm(x[..., : self.config.latents, :])).tanh()
        return at_least_float32(latents).unflatten(-2, (self.config.tokens, -1)).flatten(-2)

    def predict(self, latents: Tensor) -> list[Tensor]:
        """Return predictions of the outputs of `targets`, from the outputs of `encode`."""
        entered = latents.unflatten(-1, (self.config.packing, -1)).flatten(-3, -2)
        entered = self.widen(entered) + self.latent_out
        asked = self.place_out.expand(*entered.shape[:-2], -1, -1)
        x = torch.cat([entered, asked], -2)
        for block in self.decoder:
            x = block(x, self.allowed.T)
        outputs = self.norm_out(x[..., self.config.latents :, :]).split(self.counts, -2)
        parts = [leave(out) for leave, out in zip(self.leave, outputs, strict=True)]
        predicted = [parts.pop(0).squeeze(-2)] if self.sizes else []
        pairs = zip(parts, self.shapes, strict=True)
        return predicted + [at_least_float32(self._image(part, *shape)) for part, shape in pairs]

    def _patches(self, image: Tensor) -> Tensor:
        """Return the patches (..., count, numbers) of an image (..., channels, side, side)."""
        size = self.config.patch
        cut = image.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))
        # (..., channels, rows, size, columns, size) to (..., rows, columns, channels, size, size)
        cut = cut.movedim(-4, -5).movedim(-2, -4)
        return cut.flatten(-3).flatten(-3, -2)

    def _image(self, patches: Tensor, channels: int, rows: int, columns: int) -> Tensor:
        """Return the image of `_patches`."""
        size = self.config.patch
        cut = patches.unflatten(-1, (channels, size, size)).unflatten(-4, (rows, columns))
        return cut.movedim(-4, -2).movedim(-4, -5).flatten(-2).flatten(-3, -2)


class Level(NamedTuple):
    """How noisy latents are, and how far a denoising step goes.

    Attributes:
        signal: (B, T) int64, the share of the signal in units of 1 / `finest`.
        step: (B, T) int64, k for a step of 2 ** k of these units.
    """

    signal: Tensor
    step: Tensor


class Dynamics(nn.Module):
    """Predicts clean latents from noisy ones, those before and actions (arXiv 2509.24527).

    Args:
        action: width of an encoded action.
        config: sizes.
    """

    allowed: Tensor

    def __init__(self, action: int, config: Dreamer4Config) -> None:
        super().__init__()
        self.config, width = config, config.width
        numbers = config.packing * config.channels
        self.enter = nn.Linear(numbers, width)
        self.enter_action = nn.Linear(action, width)
        self.signal = nn.Embedding(config.finest + 1, width // 2)
        self.step = nn.Embedding(config.finest.bit_length(), width // 2)
        self.learnt = token(config.registers + 1, width)
        tokens = config.tokens + config.registers + 3
        self.place = token(tokens, width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp * width, time=k % config.time_every == 0)
            for k in range(1, config.blocks + 1)
        )
        self.norm = RMSNorm(width, eps=EPSILON)
        self.leave = linear(width, numbers)
        # The last token, of the features, sees all others; they do not see it.
        seen = torch.arange(tokens) < tokens - 1
        self.register_buffer("allowed", seen | ~seen.unsqueeze(1), persistent=False)

    def forward(
        self,
        latents: Tensor,
        level: Level,
        actions: Tensor,
        known: Tensor,
        before: list[Keys] | None = None,
    ) -> tuple[Tensor, Tensor, list[Keys]]:
        """Predict the clean latents of T observations.

        Args:
            latents: (B, T, tokens, numbers) noisy.
            level: their noise, and the step.
            actions: (B, T, action) encoded, each led to its observation.
            known: (B, M) bool, false for observations that are not there.
            before: keys and values of M - T observations before, for each block over time.

        Returns:
            The clean latents, (B, T, width) features of each observation, and keys and values of
            the last observations.
        """
        noise = torch.cat([self.signal(level.signal), self.step(level.step)], -1)
        tokens = [self.enter_action(actions), noise.to(latents.dtype)]
        learnt = self.learnt.expand(*noise.shape[:2], -1, -1)
        single = torch.stack([token.to(learnt.dtype) for token in tokens], -2)
        entered = self.enter(latents).to(learnt.dtype)
        x = torch.cat([entered, single, learnt], -2) + self.place
        kept, given = [], iter(before or [])
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        for block in blocks:
            x = block.space(x, self.allowed)
            if block.time is not None:
                x, keys = block.time(x, self.config.context, next(given, None), known)
                kept.append(newest(keys, self.config.context))
            x = block.finish(x)
        x = self.norm(x)
        return at_least_float32(self.leave(x[..., : self.config.tokens, :])), x[..., -1, :], kept
