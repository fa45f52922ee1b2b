"""Convolutions that turn images into vectors, and vectors into images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.nn.layers import LayerNorm, RMSNorm, at_least_float32

Padding = Literal["valid", "same"]


Norm = Literal["none", "rms", "layer"]


NORM_EPSILON = 1e-4


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


@dataclass(frozen=True, kw_only=True)
class ConvStack:
    """A stack of strided convolutions, or of transposed ones.

    Attributes:
        depths: channels. An encoder's layers have these, in order; a decoder begins on a grid with
            the first, its layers have the others, and its last layer has the image's channels.
        kernels: width of each layer's kernel; as many as depths.
        stride: of every layer.
        padding: "valid" has none; "same" divides (or multiplies) the size by the stride.
        activation: "relu", "elu", "silu" or "gelu"; a decoder's last layer has none.
        norm: of the channels at each place, before the activation: "none", "rms" or "layer". A
            decoder that has one has it, and the activation, on its grid too.
    """

    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    stride: int = 2
    padding: Padding = "valid"
    activation: str = "relu"
    norm: Norm = "none"

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.kernels):
            raise ValueError(
                f"{len(self.depths)} depths {self.depths} and {len(self.kernels)} kernels "
                f"{self.kernels}: give one kernel for each depth, and at least one"
            )
        if min(*self.depths, *self.kernels, self.stride) < 1:
            raise ValueError(f"depths, kernels and stride must be at least 1; got {self}")
        if self.padding == "same" and min(self.kernels) < self.stride:
            raise ValueError(
                f"kernels {self.kernels} leave gaps at stride {self.stride}: with padding='same' "
                "every kernel must be at least as wide as the stride"
            )
        for name, value, known in (
            ("activation", self.activation, tuple(ACTIVATIONS)),
            ("padding", self.padding, ("valid", "same")),
            ("norm", self.norm, ("none", "rms", "layer")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: give one of {', '.join(known)}")

    def scaled(self, width: float) -> ConvStack:
        """The same stack with `width` times the channels, at least one."""
        return replace(self, depths=tuple(max(1, round(d * width)) for d in self.depths))

    def paddings(self, kernel: int) -> tuple[int, int]:
        """Padding of a layer on each side, and the output padding of its transpose."""
        if self.padding == "valid":
            return 0, 0
        padding = (kernel - self.stride + 1) // 2
        return padding, self.stride - kernel + 2 * padding

    def encoded(self, size: int) -> int:
        """Rows (or columns) that an encoder leaves of `size`; below one where it does not fit."""
        for kernel in self.kernels:
            size = (size + 2 * self.paddings(kernel)[0] - kernel) // self.stride + 1
            if size < 1:
                return 0
        return size

    def decoded(self, grid: int) -> int:
        """Rows (or columns) that a decoder makes of a grid with `grid`."""
        size = grid
        for kernel in self.kernels:
            padding, extra = self.paddings(kernel)
            size = (size - 1) * self.stride - 2 * padding + kernel + extra
        return size


VMC_ENCODER = ConvStack(depths=(32, 64, 128, 256), kernels=(4, 4, 4, 4))

"""Ha and Schmidhuber (arXiv 1803.10122, appendix A.1); PlaNet and Dreamer v1 took it over."""


VMC_DECODER = ConvStack(depths=(1024, 128, 64, 32), kernels=(5, 5, 6, 6))

"""The same; on 64 by 64 its grid is 1 by 1."""


PIECE = 64 * 64 * 64

"""Pixels that a CPU works on at once: what a layer leaves lies in its cache for the next one, and
its memory is used again. On a thousand images at once that takes half as long again, or twice."""


def pieces(images: Tensor, pixels: int) -> tuple[Tensor, ...]:
    """What stands for images, (B, ...), in pieces to work on at once; one piece but on a CPU.

    Args:
        images: a row for each.
        pixels: of one.
    """
    if images.device.type != "cpu":
        return (images,)
    return images.split(max(1, PIECE // pixels))


def in_pieces(layers: nn.Module, images: Tensor, pixels: int) -> Tensor:
    """What layers make of images (B, ...), piece by piece; see `pieces`."""
    made = [layers(piece) for piece in pieces(images, pixels)]
    return made[0] if len(made) == 1 else torch.cat(made)


class ConvEncoder(nn.Module):
    """Convolutions over an image, flattened.

    Args:
        channels: of the image.
        size: (height, width) of the image.
        stack: the layers.

    Attributes:
        dim: width of the output.

    Raises:
        ValueError: the size does not fit the layers; the message says what would.
    """

    def __init__(self, channels: int, size: tuple[int, int], stack: ConvStack) -> None:
        super().__init__()
        self.grid = tuple(stack.encoded(side) for side in size)
        if not all(self.grid):
            smallest = next(side for side in range(1, 1 << 16) if stack.encoded(side))
            raise ValueError(
                f"images of {size[0]} x {size[1]} are too small for convolutions with kernels "
                f"{stack.kernels} and stride {stack.stride}: work at {smallest} x {smallest} or "
                "larger, or with fewer layers"
            )
        layers: list[nn.Module] = []
        for depth, kernel in zip(stack.depths, stack.kernels, strict=True):
            padding, _ = stack.paddings(kernel)
            layers += [nn.Conv2d(channels, depth, kernel, stack.stride, padding)]
            layers += _finish(stack, depth)
            channels = depth
        self.layers = nn.Sequential(*layers)
        self.dim = channels * math.prod(self.grid)

    def forward(self, images: Tensor) -> Tensor:
        """Encode (..., channels, height, width) floats; gives (..., dim)."""
        flat = in_pieces(self.layers, images.flatten(0, -4), images.shape[-2:].numel())
        return flat.flatten(1).unflatten(0, images.shape[:-3])


class ConvDecoder(nn.Module):
    """Transposed convolutions from a vector to an image; the last layer is linear.

    Args:
        inputs: width of the vector.
        channels: of the image.
        size: (height, width) of the image.
        stack: the layers.

    Raises:
        ValueError: the layers cannot make an image of that size; the message says what they can.
    """

    def __init__(self, inputs: int, channels: int, size: tuple[int, int], stack: ConvStack) -> None:
        super().__init__()
        self.pixels = math.prod(size)
        self.grid = (stack.depths[0], *(_grid(stack, side) for side in size))
        self.dense = nn.Linear(inputs, math.prod(self.grid))
        layers: list[nn.Module] = []
        if stack.norm != "none":
            layers += _finish(stack, stack.depths[0])
        depths = [*stack.depths, channels]
        for k, kernel in enumerate(stack.kernels):
            padding, extra = stack.paddings(kernel)
            layers += [
                nn.ConvTranspose2d(depths[k], depths[k + 1], kernel, stack.stride, padding, extra)
            ]
            if k + 1 < len(stack.kernels):
                layers += _finish(stack, depths[k + 1])
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """Decode (..., inputs); gives (..., channels, height, width) floats without bounds."""
        grid = self.dense(vectors.flatten(0, -2)).unflatten(-1, self.grid)
        return at_least_float32(in_pieces(self.layers, grid, self.pixels)).unflatten(
            0, vectors.shape[:-1]
        )


class ChannelNorm(nn.Module):
    """Normalise the channels (dimension 1) at each place of (B, channels, height, width)."""

    def __init__(self, channels: int, kind: Norm) -> None:
        super().__init__()
        of = RMSNorm if kind == "rms" else LayerNorm
        self.norm = of(channels, eps=NORM_EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised; same shape."""
        return self.norm(images.movedim(1, -1)).movedim(-1, 1)


def _finish(stack: ConvStack, depth: int) -> list[nn.Module]:
    """What comes after a convolution: the norm, if any, and the activation."""
    norm: list[nn.Module] = [] if stack.norm == "none" else [ChannelNorm(depth, stack.norm)]
    return [*norm, ACTIVATIONS[stack.activation]()]


def _grid(stack: ConvStack, size: int) -> int:
    """Rows (or columns) of the grid from which a decoder makes `size`.

    Raises:
        ValueError: it cannot.
    """
    made = [stack.decoded(grid) for grid in range(1, size + 2)]
    if size in made:
        return made.index(size) + 1
    near = sorted(sorted(set(made), key=lambda other: abs(other - size))[:2])
    raise ValueError(
        f"a side of {size} pixels cannot be made by transposed convolutions with kernels "
        f"{stack.kernels}, stride {stack.stride} and padding {stack.padding!r}: work at "
        f"{' or '.join(map(str, near))} pixels"
    )


def halvings(size: int, smallest: int = 4) -> int:
    """How often an image's side can be halved down to `smallest` rows, as DreamerV3 sizes itself.

    Raises:
        ValueError: `size` is not `smallest` times a power of two; the nearest such sizes are named.
    """
    count = round(math.log2(max(1.0, size / smallest)))
    if count < 1 or smallest << count != size:
        below = max(1, math.floor(math.log2(max(2.0, size / smallest))))
        raise ValueError(
            f"a side of {size} pixels cannot be halved down to {smallest}: work at "
            f"{smallest << below} or {smallest << (below + 1)} pixels"
        )
    return count


class Pixels(nn.Module):
    """Between a real environment's images and what a network works on; it has no parameters.

    A world remembers the size that it works at: images of any size are resized on their way in,
    and what is decoded has the real environment's size again.

    Args:
        box: of uint8 images (height, width, channels).
        size: (height, width) to work at, or None for the images' own.

    Attributes:
        channels: of the images.
        size: (height, width) that a network sees.
    """

    rows: Tensor
    columns: Tensor
    rows_back: Tensor
    columns_back: Tensor

    def __init__(self, box: gym.spaces.Box, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        height, width, self.channels = box.shape
        self.size = size or (height, width)
        self.resizes = self.size != (height, width)
        self.low, self.high = float(box.low.max()), float(box.high.min())
        if self.resizes:
            weights = {
                "rows": _weights(height, self.size[0]),
                "columns": _weights(width, self.size[1]),
                "rows_back": _weights(self.size[0], height),
                "columns_back": _weights(self.size[1], width),
            }
            for name, value in weights.items():
                self.register_buffer(name, value, persistent=False)

    def to_float(self, images: Tensor) -> Tensor:
        """Floats in [0, 1], (..., channels, *size), of bytes (..., height, width, channels)."""
        moved = images.movedim(-1, -3).float() / 255.0
        return _resize(moved, self.rows, self.columns) if self.resizes else moved

    def to_bytes(self, images: Tensor) -> Tensor:
        """Bytes (..., height, width, channels) of floats (..., channels, *size), cut to [0, 1]."""
        if self.resizes:
            images = _resize(images, self.rows_back, self.columns_back)
        scaled = (images * 255.0).round().clamp(self.low, self.high)
        return scaled.to(torch.uint8).movedim(-3, -1).contiguous()


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize floats (..., channels, height, width): by area where it shrinks, else linearly.

    Args:
        images: floats.
        size: (height, width) wanted.
    """
    rows = _weights(images.shape[-2], size[0]).to(images)
    columns = _weights(images.shape[-1], size[1]).to(images)
    return _resize(images, rows, columns)


def _resize(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # Two matrix products and no `interpolate`: its "area" mode rounds the borders of an area.
    return rows @ images @ columns.mT


def _weights(source: int, target: int) -> Tensor:
    """(target, source) weights of each old pixel in each new one; every row sums to one."""
    if target <= source:
        edges = np.arange(target + 1) * (source / target)
        old = np.arange(source)
        shared = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
        weights = torch.tensor(np.clip(shared, 0, None), dtype=torch.float32)
        return weights / weights.sum(-1, keepdim=True)
    eye = torch.eye(source).unsqueeze(0)
    return F.interpolate(eye, size=target, mode="linear", align_corners=False)[0].T.contiguous()
