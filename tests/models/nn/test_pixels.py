"""Images as floats and back: exact at their own size, resized by area at another."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models.nn.conv import Pixels


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def box(*shape: int) -> gym.spaces.Box:
    return gym.spaces.Box(0, 255, shape, np.uint8)


def test_bytes_are_unchanged_by_a_round_trip():
    pixels, seen = Pixels(box(6, 9, 3)), images(2, 4, 6, 9, 3)
    floats = pixels.to_float(seen)
    assert floats.shape == (2, 4, 3, 6, 9)
    assert float(floats.min()) >= 0
    assert float(floats.max()) <= 1
    assert torch.equal(pixels.to_bytes(floats), seen)


def test_values_out_of_range_are_clamped_to_the_bounds_of_the_box():
    pixels = Pixels(gym.spaces.Box(10, 200, (2, 2, 1), np.uint8))
    floats = torch.tensor([-3.0, 0.5, 1.0, 7.0]).view(1, 1, 2, 2)
    assert pixels.to_bytes(floats).flatten().tolist() == [10, 128, 200, 200]


def test_images_are_resized_to_the_working_size_and_back():
    pixels, seen = Pixels(box(24, 32, 3), (8, 8)), images(5, 24, 32, 3)
    small = pixels.to_float(seen)
    assert small.shape == (5, 3, 8, 8)
    mean = seen[:, :3, :4].float().mean((1, 2)) / 255
    torch.testing.assert_close(small[:, :, 0, 0], mean)
    back = pixels.to_bytes(small)
    assert back.shape == seen.shape
    assert back.dtype == torch.uint8
    assert not pixels.state_dict()


@pytest.mark.parametrize("size", [(5, 7), (13, 9), (2, 3), (40, 30)])
def test_resizing_keeps_a_uniform_image(size):
    pixels = Pixels(box(13, 17, 3), size)
    resized = pixels.to_float(torch.full((1, 13, 17, 3), 51, dtype=torch.uint8))
    assert resized.shape == (1, 3, *size)
    assert torch.allclose(resized, torch.tensor(0.2))


def test_an_area_that_ends_within_a_pixel_takes_its_share_of_it():
    row = torch.tensor([0, 3, 6], dtype=torch.uint8).view(1, 1, 3, 1)
    resized = Pixels(box(1, 3, 1), (1, 2)).to_float(row)
    torch.testing.assert_close(resized * 255, torch.tensor([[[[1.0, 5.0]]]]))
    whole = images(1, 13, 17, 1)
    shrunk = Pixels(box(13, 17, 1), (5, 7)).to_float(whole)
    torch.testing.assert_close(shrunk.mean() * 255, whole.float().mean())


@pytest.mark.parametrize("shape", [(3, 24, 32), (24, 32), (2, 24, 32, 3), (2, 3, 24, 32)])
def test_bytes_in_another_order_of_axes_are_unchanged_by_a_round_trip(shape):
    pixels, seen = Pixels(box(*shape)), images(5, *shape)
    floats = pixels.to_float(seen)
    assert floats.shape == (5, pixels.channels, 24, 32)
    assert torch.equal(pixels.to_bytes(floats), seen)


def test_a_network_sees_the_same_image_in_every_order_of_axes():
    seen = images(5, 24, 32, 3)
    expected = Pixels(box(24, 32, 3)).to_float(seen)
    first = seen.permute(0, 3, 1, 2)
    assert torch.equal(Pixels(box(3, 24, 32)).to_float(first), expected)
    # stacked frames are channels, one frame after the other
    both = torch.cat([expected, expected.flip(0)], 1)
    stacked = torch.stack([seen, seen.flip(0)], 1)
    assert torch.equal(Pixels(box(2, 24, 32, 3)).to_float(stacked), both)
    stacked = torch.stack([first, first.flip(0)], 1)
    assert torch.equal(Pixels(box(2, 3, 24, 32)).to_float(stacked), both)


def test_large_images_are_resized_piece_by_piece_with_the_same_result():
    pixels, seen = Pixels(box(300, 400, 3), (16, 16)), images(7, 300, 400, 3)
    whole = pixels._to_float(seen)
    torch.testing.assert_close(pixels.to_float(seen.unflatten(0, (7, 1))).squeeze(1), whole)
    assert torch.equal(pixels.to_bytes(whole), pixels._to_bytes(whole))
    first = Pixels(box(3, 300, 400), (16, 16)).to_float(seen.permute(0, 3, 1, 2))
    torch.testing.assert_close(whole, first)
    stacked = Pixels(box(7, 300, 400, 3), (16, 16)).to_float(seen)
    torch.testing.assert_close(stacked, whole.flatten(0, 1))
