"""Image files of a dataset, decoded to arrays of equal shape."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dreamgym.data.formats.interface import Array
from dreamgym.data.hdf5.guard import open_regular
from dreamgym.data.image_decoding import decode_image
from dreamgym.errors import DatasetError

Mode = Literal["RGB", "L"] | None

SUFFIXES = (".png", ".jpg", ".jpeg")


def read_image_files(root: Path, names: Sequence[str], suffixes: Sequence[str] = ("",)) -> Array:
    """Decode image files, uint8 `(N, H, W, C)`; grey ones have one channel.

    Args:
        root: the folder of the dataset, outside of which nothing is read.
        names: paths of the files in it, without their suffix.
        suffixes: suffixes to try.

    Raises:
        DatasetError: a file is missing, outside the folder, not an image, or of another size than
            the first.
    """
    images: list[Array] = []
    for name in names:
        path = find_file(root, name, suffixes)
        try:
            image = with_channels(decode_image(read_file(path)))
        except DatasetError as error:
            raise error.at(path=path) from error.__cause__
        if images and image.shape != images[0].shape:
            raise DatasetError(
                f"its image has the shape {image.shape}; the first has {images[0].shape}", path=path
            )
        images.append(image)
    return np.stack(images) if images else np.empty((0, 1, 1, 1), np.uint8)


def decode_images(rows: Sequence[bytes], mode: Mode, name: str, first: int) -> Array:
    """Decode rows of a column, uint8 `(N, H, W, C)`.

    Args:
        rows: contents of JPEG or PNG files.
        mode: see `decode_image`.
        name: name of the column, for error messages.
        first: number of the first row in its episode, for error messages.

    Raises:
        DatasetError: a row is not an image, or has another size than the first.
    """
    images: list[Array] = []
    for row, data in enumerate(rows, start=first):
        try:
            images.append(with_channels(decode_image(data, mode)))
            if images[-1].shape != images[0].shape:
                raise DatasetError(
                    f"its image has the shape {images[-1].shape}; the first has {images[0].shape}"
                )
        except DatasetError as error:
            raise DatasetError(error.problem, key=name, row=row, remedy=error.remedy) from error
    return np.stack(images) if images else np.empty((0, 1, 1, 1), np.uint8)


def find_file(root: Path, name: str, suffixes: Sequence[str] = ("",)) -> Path:
    """Return the path of a file of the dataset.

    Raises:
        DatasetError: there is none, or it is outside the folder.
    """
    # Links are followed: hubs keep the files of a dataset elsewhere, behind links.
    folder = Path(os.path.abspath(root))
    paths = [Path(os.path.abspath(folder / f"{name}{suffix}")) for suffix in suffixes]
    if not all(path.is_relative_to(folder) for path in paths):
        raise DatasetError(f"{name!r} is outside the dataset", path=root)
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise DatasetError("there is no such file", path=paths[0])
    return found


def read_file(path: Path) -> bytes:
    """Return the contents of a regular file."""
    with open_regular(path) as file:
        return file.read()


def with_channels(image: Array) -> Array:
    """Return an image as `(H, W, C)`."""
    return image[:, :, None] if image.ndim == 2 else image
