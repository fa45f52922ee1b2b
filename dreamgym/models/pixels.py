"""Images of the real environment as the floats that a network works on, and back."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
