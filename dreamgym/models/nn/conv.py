"""Convolutional encoders and decoders, and the conversion between images and network inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym._settings import check_choice
from dreamgym.data.images import image_layout
from dreamgym.models.nn.batch_norm import BatchNorm
from dreamgym.models.nn.layers import LayerNorm, RMSNorm, at_least_float32

Padding = Literal["valid", "same"]
Norm = Literal["none", "rms", "layer", "batch"]

NORM_EPSILON = 1e-4

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


@dataclass(frozen=True, kw_only=True)
class ConvStack:
    """Config of a stack of strided convolutions, or of transposed ones.

    Attributes:
        depths: channels, in order. An encoder has one layer for each. A decoder starts from a grid
            with the first depth; its layers have the others, and the last the image's channels.
        kernels: kernel size of each layer; as many as depths.
        stride: stride of every layer.
        padding: "valid" for no padding; "same" divides (or multiplies) the size by the stride.
        activation: "relu", "elu", "silu" or "gelu"; a decoder's last layer has none.
        norm: normalisation before the activation: "none"; "rms" or "layer" over the channels of
            each pixel; or "batch" over the images of a batch, after layers without biases.
        bias: whether layers before another norm have biases.
        norm_grid: whether a decoder applies norm and activation to its first grid as well.
    """

    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    stride: int = 2
    padding: Padding = "valid"
    activation: str = "relu"
    norm: Norm = "none"
    bias: bool = True
    norm_grid: bool = True

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
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("padding", self.padding, get_args(Padding))
        check_choice("norm", self.norm, get_args(Norm))

    def scaled(self, width: float) -> ConvStack:
        """Return the same stack with `width` times the channels, at least one."""
        return replace(self, depths=tuple(max(1, round(d * width)) for d in self.depths))

    @property
    def has_biases(self) -> bool:
        """Whether layers have biases that a norm or an activation follows."""
        return self.norm == "none" or (self.bias and self.norm != "batch")

    def paddings(self, kernel: int) -> tuple[int, int]:
        """Return a layer's padding on each side, and the output padding of its transpose."""
        if self.padding == "valid":
            return 0, 0
        padding = (kernel - self.stride + 1) // 2
        return padding, self.stride - kernel + 2 * padding

    def encoded_size(self, size: int) -> int:
        """Return an encoder's output size for input `size`; 0 if the input is too small."""
        for kernel in self.kernels:
            size = (size + 2 * self.paddings(kernel)[0] - kernel) // self.stride + 1
            if size < 1:
                return 0
        return size

    def decoded_size(self, grid: int) -> int:
        """Return a decoder's output size for a grid of size `grid`."""
        size = grid
        for kernel in self.kernels:
            padding, extra = self.paddings(kernel)
            size = (size - 1) * self.stride - 2 * padding + kernel + extra
        return size


VMC_ENCODER = ConvStack(depths=(32, 64, 128, 256), kernels=(4, 4, 4, 4))
"""Encoder of Ha and Schmidhuber (arXiv 1803.10122, appendix A.1), also of PlaNet and Dreamer v1."""

VMC_DECODER = ConvStack(depths=(1024, 128, 64, 32), kernels=(5, 5, 6, 6))
"""Decoder of the same models; for 64 by 64 images it starts from a grid of 1 by 1."""

PIECE_PIXELS = 64 * 64 * 64
"""Pixels that a CPU processes at once. A layer's output then stays in the cache for the next layer,
and memory is reused: a thousand images take 1.5 to 2 times as long in one call."""


def pieces(images: Tensor, pixels: int) -> tuple[Tensor, ...]:
    """Split a batch of images on a CPU into pieces that fit the cache; elsewhere, do not split.

    Args:
        images: (B, ...) images, or vectors that are decoded to images.
        pixels: pixels of one image.
    """
    if images.device.type != "cpu":
        return (images,)
    return images.split(max(1, PIECE_PIXELS // pixels))


def apply_in_pieces(layers: nn.Module, images: Tensor, pixels: int) -> Tensor:
    """Apply layers to images (B, ...) piece by piece; see `pieces`."""
    outputs = [layers(piece) for piece in pieces(images, pixels)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class ConvEncoder(nn.Module):
    """Convolutions over an image, flattened.

    Args:
        channels: channels of the image.
        size: (height, width) of the image.
        stack: the layers.

    Attributes:
        dim: width of the output.

    Raises:
        ValueError: the image is too small; the message gives the smallest size that fits.
    """

    def __init__(self, channels: int, size: tuple[int, int], stack: ConvStack) -> None:
        super().__init__()
        self.grid = tuple(stack.encoded_size(side) for side in size)
        if not all(self.grid):
            smallest = next(side for side in range(1, 1 << 16) if stack.encoded_size(side))
            raise ValueError(
                f"images of {size[0]} x {size[1]} are too small for convolutions with kernels "
                f"{stack.kernels} and stride {stack.stride}: work at {smallest} x {smallest} or "
                "larger, or with fewer layers"
            )
        layers: list[nn.Module] = []
        for depth, kernel in zip(stack.depths, stack.kernels, strict=True):
            padding, _ = stack.paddings(kernel)
            bias = stack.has_biases
            layers += [nn.Conv2d(channels, depth, kernel, stack.stride, padding, bias=bias)]
            layers += _norm_and_activation(stack, depth)
            channels = depth
        self.layers = nn.Sequential(*layers)
        self.dim = channels * math.prod(self.grid)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode images.

        Args:
            images: (..., channels, height, width) floats.
            mask: (...) bool, false on padding; read by batch norms in training only.

        Returns:
            (..., dim).
        """
        pixels = images.shape[-2:].numel()
        flat = _apply(self.layers, images.flatten(0, -4), pixels, mask)
        return flat.flatten(1).unflatten(0, images.shape[:-3])


class ConvDecoder(nn.Module):
    """Transposed convolutions from a vector to an image; the last layer is linear.

    Args:
        inputs: width of the vector.
        channels: channels of the image.
        size: (height, width) of the image.
        stack: the layers.

    Raises:
        ValueError: the layers cannot produce that size; the message gives the nearest that fit.
    """

    def __init__(self, inputs: int, channels: int, size: tuple[int, int], stack: ConvStack) -> None:
        super().__init__()
        self.pixels = math.prod(size)
        self.grid = (stack.depths[0], *(_grid_size(stack, side) for side in size))
        bias, norm_grid = stack.has_biases, stack.norm != "none" and stack.norm_grid
        self.dense = nn.Linear(inputs, math.prod(self.grid), bias=bias or not norm_grid)
        layers: list[nn.Module] = []
        if norm_grid:
            layers += _norm_and_activation(stack, stack.depths[0])
        depths = [*stack.depths, channels]
        for k, kernel in enumerate(stack.kernels):
            padding, extra = stack.paddings(kernel)
            is_last = k + 1 == len(stack.kernels)
            layers += [
                nn.ConvTranspose2d(
                    *(depths[k], depths[k + 1], kernel, stack.stride, padding, extra),
                    bias=bias or is_last,
                )
            ]
            if not is_last:
                layers += _norm_and_activation(stack, depths[k + 1])
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        """Decode vectors.

        Args:
            vectors: (..., inputs).
            mask: (...) bool, false on padding; read by batch norms in training only.

        Returns:
            (..., channels, height, width) unbounded floats.
        """
        grid = self.dense(vectors.flatten(0, -2)).unflatten(-1, self.grid)
        images = _apply(self.layers, grid, self.pixels, mask)
        return at_least_float32(images).unflatten(0, vectors.shape[:-1])


class ChannelNorm(nn.Module):
    """Normalise over the channels of each pixel of (B, channels, height, width)."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        norm_type = RMSNorm if kind == "rms" else LayerNorm
        self.norm = norm_type(channels, eps=NORM_EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (B, channels, height, width)."""
        return self.norm(images.movedim(1, -1)).movedim(-1, 1)


class Double(nn.Module):
    """Double the side of an image by repeating pixels, and convolve it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, height, width) to (B, channels, 2 height, 2 width)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ImageBatchNorm(BatchNorm):
    """Batch normalisation of images that ignores padding; see `BatchNorm`."""

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise (B, channels, height, width); `mask` (B,) is false on padding."""
        pixels = None if mask is None else mask.view(-1, 1, 1).expand(-1, *images.shape[-2:])
        return super().forward(images.movedim(1, -1), pixels).movedim(-1, 1)


def _apply(layers: nn.Sequential, images: Tensor, pixels: int, mask: Tensor | None) -> Tensor:
    """Apply the layers of an encoder or decoder to a batch of images (B, ...).

    Args:
        layers: the layers.
        images: their input.
        pixels: pixels of one image.
        mask: (...) bool, false on padding, B values in all.
    """
    if not layers.training or mask is None or not has_batch_norm(layers):
        return apply_in_pieces(layers, images, pixels)
    for layer in layers:  # of all images at once, since a batch norm's output depends on them all
        normalises = isinstance(layer, ImageBatchNorm)
        images = layer(images, mask.flatten()) if normalises else layer(images)
    return images


def has_batch_norm(layers: nn.Module) -> bool:
    """Return whether any of the layers is a batch norm over images."""
    return any(isinstance(layer, ImageBatchNorm) for layer in layers.modules())


def _norm_and_activation(stack: ConvStack, depth: int) -> list[nn.Module]:
    """Return the layers after a convolution: the norm, if any, and the activation."""
    norm: list[nn.Module] = []
    if stack.norm == "batch":
        norm = [ImageBatchNorm(depth)]
    elif stack.norm != "none":
        norm = [ChannelNorm(depth, stack.norm)]
    return [*norm, ACTIVATIONS[stack.activation]()]


def _grid_size(stack: ConvStack, size: int) -> int:
    """Return the size of the grid from which a decoder produces `size`.

    Raises:
        ValueError: there is none.
    """
    sizes = [stack.decoded_size(grid) for grid in range(1, size + 2)]
    if size in sizes:
        return sizes.index(size) + 1
    nearest = sorted(sorted(set(sizes), key=lambda other: abs(other - size))[:2])
    raise ValueError(
        f"a side of {size} pixels cannot be produced by transposed convolutions with kernels "
        f"{stack.kernels}, stride {stack.stride} and padding {stack.padding!r}: work at "
        f"{' or '.join(map(str, nearest))} pixels"
    )


def halvings(size: int, smallest: int = 4) -> int:
    """Return how often an image's side can be halved down to `smallest`, as in DreamerV3.

    Raises:
        ValueError: `size` is not `smallest` times a power of two; the message gives the nearest.
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
    """Convert images of a real environment to network inputs, and back; without parameters.

    Images are resized to the size that the network works at, and decoded images back to the real
    environment's size.

    Args:
        box: space of uint8 images; see `image_layout` for the possible orders of the axes.
        size: (height, width) to work at; None for the images' own.

    Attributes:
        ndim: number of axes of an image.
        channels: channels of the images, those of all stacked frames.
        size: (height, width) that the network sees.

    Raises:
        TypeError: the space does not hold images.
    """

    rows: Tensor
    columns: Tensor
    rows_back: Tensor
    columns_back: Tensor

    def __init__(self, box: gym.spaces.Box, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        layout = image_layout(box)
        if layout is None:
            raise TypeError(
                f"{box} does not hold images; expected uint8 of shape (height, width, channels) or "
                "(channels, height, width)"
            )
        height, width = layout.size
        self.channels, self.ndim = layout.channels, len(layout.axes)
        self._order = [axis - self.ndim for axis in layout.order]
        self._last = list(range(-self.ndim, 0))
        self._lead = tuple(layout.shape[axis] for axis in layout.order[:-2])
        self.size = size or (height, width)
        self.resizes, self.pixels = self.size != (height, width), height * width
        large = self.pixels >= PIECE_PIXELS // 4 and height > self.size[0]
        self._rows_first = large and layout.axes in ("HWC", "SHWC")
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
        """Convert bytes (..., *box.shape) to (..., channels, *size) in [0, 1]."""
        return self._in_pieces(self._to_float, images, self.ndim)

    def _to_float(self, images: Tensor) -> Tensor:
        if self._rows_first:
            # Fewer rows, before the axes are moved: a quarter of the time for large images.
            shrunk = self.rows @ images.flatten(-2).float() / 255.0
            moved = shrunk.unflatten(-1, images.shape[-2:]).movedim(-1, -3) @ self.columns.mT
            return moved.flatten(-4, -3) if self.ndim == 4 else moved
        moved = images.movedim(self._order, self._last)
        if len(self._lead) != 1:
            sides = moved.shape[-2:]
            moved = moved.reshape(*moved.shape[: moved.ndim - self.ndim], self.channels, *sides)
        moved = moved.float() / 255.0
        return _resize(moved, self.rows, self.columns) if self.resizes else moved

    def to_bytes(self, images: Tensor) -> Tensor:
        """Convert (..., channels, *size) to bytes (..., *box.shape), clamped."""
        return self._in_pieces(self._to_bytes, images, 3)

    def _in_pieces(self, function: Callable[[Tensor], Tensor], images: Tensor, ndim: int) -> Tensor:
        """Apply a function to images of `ndim` axes; large ones piece by piece (see `pieces`)."""
        lead = images.shape[: images.ndim - ndim]
        if self.pixels < PIECE_PIXELS // 16 or not lead:
            return function(images)
        parts = [function(piece) for piece in pieces(images.flatten(0, len(lead) - 1), self.pixels)]
        return torch.cat(parts).unflatten(0, lead)

    def _to_bytes(self, images: Tensor) -> Tensor:
        if self.resizes:
            images = _resize(images, self.rows_back, self.columns_back)
        scaled = (images * 255.0).round().clamp(self.low, self.high)
        scaled = scaled.to(torch.uint8)
        if len(self._lead) != 1:
            scaled = scaled.reshape(*scaled.shape[:-3], *self._lead, *scaled.shape[-2:])
        return scaled.movedim(self._last, self._order).contiguous()


def _resize(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # Two matrix products instead of `interpolate`, whose "area" mode rounds the borders of areas.
    return rows @ images @ columns.mT


def _weights(source: int, target: int) -> Tensor:
    """Return the weight of each source pixel in each target pixel: (target, source), rows sum to 1.

    By area where the image shrinks, otherwise linear.
    """
    if target <= source:
        edges = np.arange(target + 1) * (source / target)
        old = np.arange(source)
        shared = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
        weights = torch.tensor(np.clip(shared, 0, None), dtype=torch.float32)
        return weights / weights.sum(-1, keepdim=True)
    eye = torch.eye(source).unsqueeze(0)
    return F.interpolate(eye, size=target, mode="linear", align_corners=False)[0].T.contiguous()
