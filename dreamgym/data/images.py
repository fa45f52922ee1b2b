"""Recognition of images in an observation space, and the order of their axes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

FEW_CHANNELS = 4
"""`check` has no note on images with at most this many channels: grey, RGB, RGBA."""

MIN_GREY_SIDE = 16
"""Smallest side of an image (height, width): a smaller uint8 matrix is a vector of bytes."""

LARGE_IMAGE = 256 * 256
"""Number of pixels above which `check` advises to record smaller images."""

MAX_VECTOR = 4096
"""Size above which `check` has a note on a vector: it may be meant as an image."""


class ImageLayout(NamedTuple):
    """Where height, width and channels of an image are.

    Attributes:
        axes: one letter for each axis: "H" height, "W" width, "C" channels, "S" stacked frames.
        shape: size of each axis.
    """

    axes: str
    shape: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape[self.axes.index("H")], self.shape[self.axes.index("W")]

    @property
    def channels(self) -> int:
        """Channels that a network sees: those of all stacked frames."""
        return math.prod(self.shape) // math.prod(self.size)

    @property
    def order(self) -> tuple[int, ...]:
        """Indices of the axes in the order stacked frames, channels, height, width."""
        return tuple(self.axes.index(letter) for letter in "SCHW" if letter in self.axes)

    def channels_last(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return images (N, *shape) as (N, height, width, channels)."""
        moved = images.transpose(0, *(1 + axis for axis in self.order))
        flat = moved.reshape(len(images), self.channels, *self.size)
        return np.ascontiguousarray(np.moveaxis(flat, 1, -1))

    def __str__(self) -> str:
        names = {"H": "height", "W": "width", "C": "channels", "S": "stacked frames"}
        return f"({', '.join(names[letter] for letter in self.axes)})"


def image_layout(space: spaces.Box) -> ImageLayout | None:
    """Return the layout of the images in a Box, or None if it does not hold images.

    Images are uint8, with the channels last or first, which the shape tells:

    - (H, W, C) and (C, H, W): the two equal axes are height and width; if no neighbouring axes
      are equal, the smaller one of the first and the last axis has the channels. Frames that are
      stacked in that axis are channels.
    - (H, W), both at least `MIN_GREY_SIDE`, of bytes from 0 to 255 or at least `MAX_VECTOR` of any
      range: grey images.
    - (S, H, W, C) and (S, C, H, W): S stacked frames of at most `FEW_CHANNELS` channels.
    """
    if space.dtype != np.uint8:
        return None
    axes = _image_axes(space)
    return None if axes is None else ImageLayout(axes, space.shape)


def _image_axes(space: spaces.Box) -> str | None:
    shape = space.shape
    if len(shape) == 2:
        full_range = bool((space.low == 0).all() and (space.high == 255).all())
        is_image = full_range or math.prod(shape) >= MAX_VECTOR
        return "HW" if is_image and min(shape) >= MIN_GREY_SIDE else None
    if len(shape) == 3:
        first, middle, last = shape
        if first == middle or middle == last:
            return "CHW" if first != middle and middle > 1 else "HWC"
        return "CHW" if first < last else "HWC"
    if len(shape) == 4:
        stack, *sides = shape
        if sides[2] <= FEW_CHANNELS and min(sides[:2]) > max(FEW_CHANNELS, stack):
            return "SHWC"
        if sides[0] <= FEW_CHANNELS and min(sides[1:]) > max(FEW_CHANNELS, stack):
            return "SCHW"
    return None


def image_notes(boxes: dict[str, spaces.Box]) -> list[str]:
    """Return what a user should know about how the images in an observation space are read.

    Args:
        boxes: boxes of the observation space, by key.
    """
    notes = []
    for key, box in boxes.items():
        layout = image_layout(box)
        if layout is None:
            notes += _vector_notes(key, box)
            continue
        channels, (height, width) = layout.channels, layout.size
        read_as = (
            f"{key!r} of shape {box.shape} is read as {layout}: images of {channels} channels, "
            f"{height} high and {width} wide"
        )
        if layout.axes in ("CHW", "SCHW", "SHWC"):
            place = "channels first" if layout.axes != "SHWC" else "stacked frames first"
            notes.append(
                f"{read_as}; a world works on its transpose, and its dreams have the shape and the "
                f"order of the environment ({place})"
            )
        elif channels > FEW_CHANNELS and 2 * channels > min(height, width):
            notes.append(
                f"{read_as}; if the channels come first, transpose the observations with "
                "gymnasium.wrappers.TransformObservation and record again"
            )
        if height * width > LARGE_IMAGE:
            notes.append(
                f"{key!r} holds images of {height}x{width} pixels, and models resize them to their "
                "image_size, 64 by default, whenever they read them: most of a fit's time. Record "
                "them as small as the task allows, for instance behind "
                "gymnasium.wrappers.ResizeObservation(env, (64, 64))"
            )
    return notes


def unread_images(boxes: dict[str, spaces.Box]) -> list[str]:
    """Return the notes on parts that are modelled as vectors and have the shape of images.

    Args:
        boxes: Boxes of the observation space, by key.
    """
    return [
        note
        for key, box in boxes.items()
        if image_layout(box) is None and _resembles_image(box.shape)
        for note in _vector_notes(key, box)
    ]


def _resembles_image(shape: tuple[int, ...]) -> bool:
    """Return whether a shape has two sides of an image, and further axes of few channels."""
    sides = [side for side in shape if side > FEW_CHANNELS]
    return len(shape) >= 2 and len(sides) == 2 and min(sides) >= MIN_GREY_SIDE


def _vector_notes(key: str, box: spaces.Box) -> list[str]:
    size = math.prod(box.shape)
    if size <= MAX_VECTOR and not _resembles_image(box.shape):
        return []
    return [
        f"{key!r} of shape {box.shape} and dtype {box.dtype} is modelled as a vector of {size:,} "
        "separate numbers; if it is an image, give uint8 values from 0 to 255 of shape (height, "
        "width, channels)"
    ]


def describe_observations(space: spaces.Space[Any]) -> str:
    """Return an observation space in few words: "4 numbers", "64x64 RGB images"."""
    if isinstance(space, spaces.Dict):
        return ", ".join(f"{key}: {describe_observations(each)}" for key, each in space.items())
    if not isinstance(space, spaces.Box):
        return type(space).__name__
    layout = image_layout(space)
    if layout is None:
        size = math.prod(space.shape)
        return f"{size} number" + ("" if size == 1 else "s")
    height, width = layout.size
    kind = {1: "grey", 3: "RGB", 4: "RGBA"}.get(layout.channels, f"{layout.channels}-channel")
    return f"{height}x{width} {kind} images"
