"""Networks of DIAMOND: the denoiser, and the network of rewards and terminations."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.diamond.config import DIAMONDConfig
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.conditional_conv import Blocks, GroupNorm, conv, nearly_zero
from dreamgym.models.nn.conv import Double
from dreamgym.models.nn.layers import LSTM, Linear, at_least_float32
from dreamgym.models.nn.reward_head import RewardHead

NOISE_BUCKETS = 10
"""Equal ranges of the past frames' noise level that the network can tell apart (GameNGen)."""


def down_blocks(channels: tuple[int, ...], level: int, count: int, condition: int) -> Blocks:
    """Return the blocks of one level, which starts with the channels of the one before."""
    before, here = channels[max(0, level - 1)], channels[level]
    return Blocks([before] + [here] * (count - 1), [here] * count, condition)


def halve(channels: int) -> nn.Conv2d:
    """Return a convolution that halves the side of an image."""
    layer = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    nn.init.orthogonal_(layer.weight)
    return layer


class UNet(nn.Module):
    """A U-Net of residual blocks, with attention in its middle only.

    Args:
        channels: channels of each level; the first has the full size.
        count: blocks of each level on the way down, of which each has a counterpart on the way up;
            there, one more takes in what the level began with.
        condition: width of the condition.
    """

    def __init__(self, channels: tuple[int, ...], count: int, condition: int) -> None:
        super().__init__()
        levels = range(len(channels))
        before = [channels[max(0, level - 1)] for level in levels]
        self.down = nn.ModuleList(down_blocks(channels, k, count, condition) for k in levels)
        self.middle = Blocks([channels[-1]] * 2, [channels[-1]] * 2, condition, attention=True)
        self.up = nn.ModuleList(
            Blocks(
                [2 * channels[k]] * count + [before[k] + channels[k]],
                [channels[k]] * count + [before[k]],
                condition,
            )
            for k in reversed(levels)
        )
        self.shrink = nn.ModuleList([nn.Identity(), *(halve(c) for c in channels[:-1])])
        self.grow = nn.ModuleList([nn.Identity(), *(Double(c) for c in reversed(channels[:-1]))])

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (B, channels[0], height, width) to the same shape; condition is (B, condition)."""
        kept = []
        for shrink, blocks in zip(self.shrink, self.down, strict=True):
            x = shrink(x)
            kept.append(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, condition)
                kept.append(x)
        x = self.middle(x, condition)
        for grow, blocks in zip(self.grow, self.up, strict=True):
            x = grow(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(torch.cat([x, kept.pop()], 1), condition)
        return x


class FourierFeatures(nn.Module):
    """Cosines and sines of fixed random multiples of a number."""

    weight: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(width // 2))

    def forward(self, number: Tensor) -> Tensor:
        """Map (N,) to (N, width)."""
        angle = 2 * math.pi * number.unsqueeze(-1) * self.weight
        return torch.cat([angle.cos(), angle.sin()], -1)


def action_embedding(encoder: ActionEncoder, width: int) -> nn.Linear:
    """Return a linear embedding of encoded actions; of one-hot ones it is a table of vectors.

    Its outputs start with a variance of about one, as those of `nn.Embedding`, for random actions.
    """
    layer = nn.Linear(encoder.dim, width, bias=False)
    space = encoder.space
    # One-hot vectors have one entry of one for each choice, numbers in [-1, 1] a variance of 1/3.
    power = (
        encoder.dim / 3 if isinstance(space, gym.spaces.Box) else float(np.prod(space.shape or ()))
    )
    nn.init.normal_(layer.weight, std=max(1e-12, power) ** -0.5)
    return layer


class Denoiser(nn.Module):
    """The network of the diffusion: the next frame's noise from past frames and actions.

    arXiv 2405.12399, section 3.2 and appendix C.

    Args:
        channels: channels of a frame.
        encoder: encoder of the actions.
        config: sizes.
    """

    def __init__(self, channels: int, encoder: ActionEncoder, config: DIAMONDConfig) -> None:
        super().__init__()
        width, first = config.condition, config.channels[0]
        self.noise = FourierFeatures(width)
        self.action = action_embedding(encoder, width // config.frames)
        self.context_noise = (
            nn.Embedding(NOISE_BUCKETS, width) if config.diffusion.context_noise else None
        )
        self.condition = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.inwards = conv((config.frames + 1) * channels, first)
        self.unet = UNet(config.channels, config.blocks, width)
        self.norm = GroupNorm(first)
        self.outwards = nearly_zero(conv(first, channels))

    def embed(self, actions: Tensor, context_level: Tensor | None) -> Tensor:
        """Return what the condition has of actions and past frames' noise, (B, condition).

        Args:
            actions: (B, frames, A) encoded.
            context_level: (B,) noise level of the past frames, in [0, 1]; None is zero.
        """
        embedded = self.action(actions).flatten(1)
        if self.context_noise is None:
            return embedded
        if context_level is None:
            return embedded + self.context_noise.weight[0]
        bucket = (context_level * NOISE_BUCKETS).long().clamp(max=NOISE_BUCKETS - 1)
        return embedded + self.context_noise(bucket)

    def forward(self, noisy: Tensor, c_noise: Tensor, past: Tensor, embedded: Tensor) -> Tensor:
        """Return the output (B, channels, side, side) in at least float32.

        Args:
            noisy: (B, channels, side, side) scaled noisy frames.
            c_noise: (B,) or (1,) noise levels, as `Preconditioning` has them.
            past: (B, frames x channels, side, side) scaled past frames.
            embedded: (B, condition) from `embed`.
        """
        condition = self.condition(self.noise(c_noise) + embedded)
        x = self.inwards(torch.cat([past, noisy], 1))
        x = self.unet(x, condition)
        return at_least_float32(self.outwards(F.silu(self.norm(x))))


class Outcomes(nn.Module):
    """Rewards and terminations of transitions: a ResNet on both frames, and an LSTM.

    arXiv 2405.12399, section 3.3 and appendix C.

    Args:
        channels: channels of a frame.
        encoder: encoder of the actions.
        config: sizes.

    Attributes:
        reward: predicts rewards from the head's hidden layer.
        termination: logits of "goes on" and "ends", from the same layer.
    """

    def __init__(self, channels: int, encoder: ActionEncoder, config: DIAMONDConfig) -> None:
        super().__init__()
        widths, width, hidden = config.reward_channels, config.reward_condition, config.hidden
        count, levels = config.reward_blocks, range(len(widths))
        self.action = action_embedding(encoder, width)
        self.inwards = conv(2 * channels, widths[0])
        self.levels = nn.ModuleList(down_blocks(widths, level, count, width) for level in levels)
        self.middle = Blocks([widths[-1]] * 2, [widths[-1]] * 2, width, attention=True)
        self.shrink = nn.ModuleList([nn.Identity(), *(halve(c) for c in widths[:-1])])
        side = config.image_size >> (len(widths) - 1)
        self.lstm = LSTM(widths[-1] * side * side, hidden)
        self.trunk = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU())
        objective = config.objective
        outputs = Linear(hidden, objective.reward_outputs, bias=False)
        self.reward = RewardHead(nn.Sequential(outputs), objective)
        self.termination = Linear(hidden, 2, bias=False)
        self._initialise_lstm()

    @torch.no_grad()
    def _initialise_lstm(self) -> None:
        """Initialise the LSTM as published; it remembers at first."""
        nn.init.xavier_uniform_(self.lstm.weight_ih)
        nn.init.orthogonal_(self.lstm.weight_hh)
        nn.init.zeros_(self.lstm.bias)
        hidden = self.lstm.weight_hh.shape[1]
        self.lstm.bias[hidden : 2 * hidden] = 1.0

    def encode(self, frame: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """Encode transitions for the LSTM: (B, n).

        Args:
            frame: (B, channels, side, side) in [-1, 1].
            action: (B, A) encoded.
            following: (B, channels, side, side), the frame after the action.
        """
        condition = self.action(action)
        x = self.inwards(torch.cat([frame, following], 1))
        for shrink, blocks in zip(self.shrink, self.levels, strict=True):
            x = blocks(shrink(x), condition)
        return self.middle(x, condition).flatten(1)
