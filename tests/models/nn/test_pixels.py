"""Images as floats and back: exact at the own size, by area at another."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models.nn.conv import Pixels, resize


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def box(*shape: int) -> gym.spaces.Box:
    return gym.spaces.Box(0, 255, shape, np.uint8)


def test_bytes_go_there_and_back_unchanged():
    pixels, seen = Pixels(box(6, 9, 3)), images(2, 4, 6, 9, 3)
    floats = pixels.to_float(seen)
    assert floats.shape == (2, 4, 3, 6, 9)
    assert float(floats.min()) >= 0
    assert float(floats.max()) <= 1
    assert torch.equal(pixels.to_bytes(floats), seen)


def test_what_is_out_of_range_is_cut_to_the_bounds_of_the_box():
    pixels = Pixels(gym.spaces.Box(10, 200, (2, 2, 1), np.uint8))
    floats = torch.tensor([-3.0, 0.5, 1.0, 7.0]).view(1, 1, 2, 2)
    assert pixels.to_bytes(floats).flatten().tolist() == [10, 128, 200, 200]


def test_a_world_works_at_its_size_and_gives_back_the_real_one():
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
def test_resizing_keeps_a_plain_image_and_about_the_mean(size):
    assert torch.allclose(resize(torch.full((1, 3, 13, 17), 0.3), size), torch.tensor(0.3))
    shrunk = resize(torch.rand(2, 3, 13, 17), (5, 7))
    assert shrunk.shape == (2, 3, 5, 7)


def test_an_area_that_ends_within_a_pixel_takes_its_share_of_it():
    row = torch.tensor([[[0.0, 3.0, 6.0]]])
    torch.testing.assert_close(resize(row, (1, 2)), torch.tensor([[[1.0, 5.0]]]))
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(1, 1, 13, 17, generator=generator)
    torch.testing.assert_close(resize(whole, (5, 7)).mean(), whole.mean())
