"""Decode the JPEG and PNG images of a dataset, without trusting the size in their headers."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dreamgym.data.hdf5.guard import stand_in
from dreamgym.errors import DatasetError

Array = NDArray[Any]

MAX_PIXELS = 1 << 26
"""Largest image that is decoded; 8,192 x 8,192."""

# The most pixels that a byte of each format can hold: JPEG spends at least one bit on a block of
# 8x8 pixels, PNG one bit on a pixel, which deflate shrinks at most 1,032 times.
_PIXELS_PER_BYTE = {"JPEG": 8 * 64, "PNG": 8 * 1032}


def decode_image(data: bytes, mode: Literal["RGB", "L"] | None = None) -> Array:
    """Decode a JPEG or PNG image.

    Args:
        data: content of the file.
        mode: `"RGB"` for three channels, `"L"` for grey; None for what the image has (transparency
            is left out).

    Returns:
        uint8 pixels, `(H, W, 3)`, or `(H, W)` for a grey image.

    Raises:
        DatasetError: it is not such an image, it is damaged, it has more than 8 bits a channel, it
            is larger than `MAX_PIXELS` or than its bytes can hold, or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DatasetError(
            "its images are JPEG or PNG, and Pillow is not installed", remedy="pip install pillow"
        ) from None
    try:
        with Image.open(io.BytesIO(data), formats=list(_PIXELS_PER_BYTE)) as image:
            _require_plausible_size(image.width * image.height, str(image.format), len(data))
            if image.mode.startswith(("I", "F")):  # a conversion to bytes would cut most values off
                raise DatasetError(
                    f"its image has more than 8 bits a channel ({image.mode}), as depth has",
                    remedy="leave it out (keys, --key), or store it as an array of floats",
                )
            wanted = mode or ("L" if image.mode in ("1", "L", "LA") else "RGB")
            return np.asarray(image.convert(wanted))
    except DatasetError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and its own
        text = str(error).replace(" <_io.BytesIO object", "").split(" at 0x")[0]
        kind, remedy = stand_in(data[:64]) or (None, None)
        what = f"not a JPEG or PNG image that can be read ({text})" if kind is None else kind
        raise DatasetError(f"it is {what}", remedy=remedy) from error


def _require_plausible_size(pixels: int, kind: str, size: int) -> None:
    most = min(MAX_PIXELS, _PIXELS_PER_BYTE[kind] * size)
    if pixels > most:
        raise DatasetError(
            f"its image claims {pixels:,} pixels in {size:,} bytes of {kind}; expected at most "
            f"{most:,}"
        )


def resize_images(images: Array, size: tuple[int, int]) -> Array:
    """Resize images by averaging the pixels of an area.

    Args:
        images: uint8 `(N, H, W, C)` of 1, 3 or 4 channels.
        size: new height and width.

    Raises:
        DatasetError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DatasetError(
            "resizing images needs Pillow, which is not installed", remedy="pip install pillow"
        ) from None
    resized = np.empty((len(images), *size, images.shape[-1]), np.uint8)
    for image, target in zip(images, resized, strict=True):
        grey = image[:, :, 0] if image.shape[-1] == 1 else image
        small = Image.fromarray(grey).resize(size[::-1], Image.Resampling.BOX)
        target[...] = np.asarray(small).reshape(target.shape)
    return resized
