"""Random views of images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RATIOS = (3 / 4, 4 / 3)
"""Least and largest ratio of a crop's width to its height, relative to the image's."""

CROP_UNIFORMS = 4
"""Uniforms of one random crop."""


def random_resized_crop(images: Tensor, uniforms: Tensor, smallest: float) -> Tensor:
    """Return a random part of each image, resized to the whole image's size.

    The area is uniform, the ratio of the sides log-uniform (Szegedy et al. 2015, arXiv 1409.4842),
    and the place uniform among those in the image. A side that would exceed the image is cut off;
    torchvision's transform of this name draws again instead.

    Args:
        images: (..., channels, height, width) floats.
        uniforms: (..., `CROP_UNIFORMS`) in [0, 1).
        smallest: smallest area, as a share of the image's.
    """
    shape = images.shape
    flat = images.flatten(0, -4)
    u = uniforms.flatten(0, -2).to(flat.dtype)
    area = smallest + (1 - smallest) * u[:, 0]
    low, high = (math.log(ratio) for ratio in RATIOS)
    ratio = (low + (high - low) * u[:, 1]).exp()
    rows = _positions((area / ratio).sqrt(), u[:, 2], shape[-2])
    columns = _positions((area * ratio).sqrt(), u[:, 3], shape[-1])
    grid = torch.stack(
        [
            columns.unsqueeze(1).expand(-1, shape[-2], -1),
            rows.unsqueeze(2).expand(-1, -1, shape[-1]),
        ],
        -1,
    )
    return F.grid_sample(flat, grid, align_corners=True).view(shape)


def _positions(share: Tensor, uniform: Tensor, size: int) -> Tensor:
    """Return where the pixels of the resized crops lie along one side, in [-1, 1]: (N, size).

    Args:
        share: (N,) sides of the crops, as shares of the image's.
        uniform: (N,) uniforms for their places.
        size: the image's side in pixels.
    """
    side = (share * size).round().clamp(1, size)
    start = (uniform * (size - side + 1)).floor()
    pixels = torch.arange(size, device=share.device, dtype=share.dtype)
    within = (pixels + 0.5) * (side / size).unsqueeze(1) - 0.5
    within = within.clamp(min=0).minimum((side - 1).unsqueeze(1))
    return 2 * (start.unsqueeze(1) + within) / max(1, size - 1) - 1
