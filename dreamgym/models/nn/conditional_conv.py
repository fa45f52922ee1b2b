"""Residual convolutions whose norms follow from a condition, as in DIAMOND."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 8
"""Channels of an attention head."""

GROUP = 32
"""Channels of a group in group norms."""

EPSILON = 1e-5
"""Added to variances in group norms."""

SMALL_STD = 1e-3
"""Standard deviation of the weights that start at zero in the published networks. With exact zeros
the layers before them would have no gradient in the first update."""


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution of 3 by 3 that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def nearly_zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Fill the weights of a convolution with small numbers, and its biases with zeros."""
    nn.init.normal_(layer.weight, std=SMALL_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def groups(channels: int) -> int:
    """Return the number of groups of a group norm."""
    return max(1, channels // GROUP)


class GroupNorm(nn.GroupNorm):
    """Group norm in groups of 32 channels, computed and returned in the dtype of its weights."""

    def __init__(self, channels: int) -> None:
        super().__init__(groups(channels), channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, channels, height, width)."""
        return super().forward(x.to(self.weight.dtype))


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose scale and shift follow from a condition (B, condition)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.groups = groups(channels)
        self.linear = nn.Linear(condition, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalise x (B, channels, height, width)."""
        scale, shift = self.linear(condition)[:, :, None, None].chunk(2, 1)
        return F.group_norm(x, self.groups, eps=EPSILON) * (1 + scale) + shift


class Attention(nn.Module):
    """Self-attention between the pixels of an image, added to the normalised image.

    The published code adds it there, and not to the image before the norm.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD_WIDTH)
        self.norm = GroupNorm(channels)
        self.joint = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nearly_zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each of x (B, channels, height, width)."""
        x = self.norm(x)
        joint = self.joint(x).flatten(2).unflatten(1, (3, self.heads, -1))
        query, key, value = joint.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(-1, -2).reshape(x.shape))


class Block(nn.Module):
    """Two convolutions with adaptive norms, residual, and attention if asked for."""

    def __init__(self, inputs: int, outputs: int, condition: int, *, attention: bool) -> None:
        super().__init__()
        self.project = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.norm1 = AdaptiveGroupNorm(inputs, condition)
        self.conv1 = conv(inputs, outputs)
        self.norm2 = AdaptiveGroupNorm(outputs, condition)
        self.conv2 = nearly_zero(conv(outputs, outputs))
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (B, inputs, height, width) to (B, outputs, height, width)."""
        y = self.conv1(F.silu(self.norm1(x, condition)))
        y = self.conv2(F.silu(self.norm2(y, condition)))
        y = self.attention(y + self.project(x))
        return y


class Blocks(nn.ModuleList):
    """Blocks one after another."""

    def __init__(
        self, inputs: list[int], outputs: list[int], condition: int, *, attention: bool = False
    ) -> None:
        pairs = zip(inputs, outputs, strict=True)
        super().__init__(Block(*pair, condition, attention=attention) for pair in pairs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (B, inputs[0], height, width) to (B, outputs[-1], height, width)."""
        for block in self:
            x = block(x, condition)
        return x
