"""Pictures of observations, encoded for a page."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym._extras import import_extra

LARGEST_PNG = 160 * 160
"""Pixels of an image that is sent as PNG, exact to the pixel; larger ones are JPEG, for speed."""

JPEG_QUALITY = 88


def encode(frame: NDArray[np.uint8]) -> bytes:
    """Return an image (height, width, 3) uint8 as PNG or, if it is large, as JPEG.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
    """
    pillow: Any = import_extra("PIL.Image", "dreamgym play", {"PIL": "play"})
    image, buffer = pillow.fromarray(np.ascontiguousarray(frame)), io.BytesIO()
    if frame.shape[0] * frame.shape[1] <= LARGEST_PNG:
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def media_type(data: bytes) -> str:
    """Return the media type of an image that `encode` returned."""
    return "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
