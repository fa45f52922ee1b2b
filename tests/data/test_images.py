"""Recognition of images in an observation space, and what `check` says about them."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data.images import image_layout, image_notes


def images(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("shape", "axes", "channels", "size"),
    [
        ((64, 64, 3), "HWC", 3, (64, 64)),
        ((3, 64, 64), "CHW", 3, (64, 64)),
        ((4, 84, 84), "CHW", 4, (84, 84)),
        ((84, 84, 12), "HWC", 12, (84, 84)),
        ((64, 96, 96), "CHW", 64, (96, 96)),
        ((210, 160, 3), "HWC", 3, (210, 160)),
        ((3, 210, 160), "CHW", 3, (210, 160)),
        ((12, 210, 160), "CHW", 12, (210, 160)),
        ((84, 84, 1), "HWC", 1, (84, 84)),
        ((1, 84, 84), "CHW", 1, (84, 84)),
        ((7, 7, 3), "HWC", 3, (7, 7)),
        ((3, 7, 7), "CHW", 3, (7, 7)),
        ((5, 5, 8), "HWC", 8, (5, 5)),
        ((111, 8, 8), "CHW", 111, (8, 8)),
        ((84, 84), "HW", 1, (84, 84)),
        ((20, 30), "HW", 1, (20, 30)),
        ((4, 84, 84, 3), "SHWC", 12, (84, 84)),
        ((4, 3, 84, 96), "SCHW", 12, (84, 96)),
    ],
)
def test_the_shape_tells_the_order_of_the_axes(shape, axes, channels, size) -> None:
    layout = image_layout(images(*shape))
    assert layout is not None
    assert (layout.axes, layout.channels, layout.size) == (axes, channels, size)


@pytest.mark.parametrize(
    "box",
    [
        spaces.Box(0, 1, (64, 64, 3), np.float32),
        spaces.Box(0, 2, (19, 19), np.uint8),
        images(8, 8),
        images(128),
        images(2, 3, 4, 5),
    ],
)
def test_other_boxes_are_vectors(box: spaces.Box) -> None:
    assert image_layout(box) is None


def test_a_large_matrix_of_bytes_is_an_image_whatever_its_range() -> None:
    layout = image_layout(spaces.Box(0, 15, (84, 84), np.uint8))
    assert layout is not None
    assert layout.axes == "HW"


def test_channels_last_puts_the_same_pixels_elsewhere() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    first = image_layout(images(3, 20, 24))
    assert first is not None
    assert np.array_equal(first.channels_last(pixels.transpose(0, 3, 1, 2)), pixels)
    stacked = image_layout(images(2, 20, 24, 3))
    assert stacked is not None
    assert np.array_equal(stacked.channels_last(pixels[None])[0, ..., 3:], pixels[1])


def test_notes_tell_of_axes_and_of_what_is_large() -> None:
    (first,) = image_notes({"camera": images(3, 64, 64)})
    assert "'camera' of shape (3, 64, 64) is read as (channels, height, width)" in first
    assert "channels first" in first
    (doubtful,) = image_notes({"camera": images(64, 64, 64)})
    assert "64 channels" in doubtful
    assert "if the channels come first" in doubtful
    (vector,) = image_notes({"camera": spaces.Box(0, 1, (64, 64, 3), np.float32)})
    assert "12,288 separate numbers" in vector
    for shape, dtype in (((64, 64), np.uint16), ((1, 20, 30), np.float32), ((4, 20, 30, 3), "f4")):
        (vector,) = image_notes({"camera": spaces.Box(0, 1, shape, dtype)})
        assert "if it is an image, give uint8 values" in vector
    assert not image_notes({"a": spaces.Box(0, 1, (8, 8)), "b": spaces.Box(0, 1, (500,))})
    (large,) = image_notes({"camera": images(600, 800, 3)})
    assert "600x800 pixels" in large
    assert "ResizeObservation" in large
    assert not image_notes({"a": images(64, 64, 3), "b": images(84, 84, 12), "c": images(84, 84)})
