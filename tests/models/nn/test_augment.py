"""Random crops of images, against crops that are cut out and resized."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dreamgym.models.nn.augment import CROP_UNIFORMS, random_resized_crop


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_crop_is_the_resized_part_of_the_image():
    size, smallest = 16, 0.25
    uniforms = torch.rand(5, 7, CROP_UNIFORMS, generator=torch.Generator().manual_seed(1)).double()
    given = images(5, 7, 3, size, size)
    got = random_resized_crop(given, uniforms, smallest)
    sides = set()
    for b in range(5):
        for t in range(7):
            area, ratio, top, left = uniforms[b, t].tolist()
            area = smallest + (1 - smallest) * area
            ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio)
            height = min(size, round(math.sqrt(area / ratio) * size))
            width = min(size, round(math.sqrt(area * ratio) * size))
            y, x = int(top * (size - height + 1)), int(left * (size - width + 1))
            part = given[b, t : t + 1, :, y : y + height, x : x + width]
            expected = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
            torch.testing.assert_close(got[b, t], expected[0])
            sides |= {height, width}
    assert min(sides) < 10
    assert max(sides) == size


@pytest.mark.parametrize("value", [0.0, 0.999999])
def test_the_whole_image_stays_as_it_is(value):
    given = images(2, 3, 8, 8)
    uniforms = torch.full((2, CROP_UNIFORMS), value).double()
    uniforms[:, 1] = 0.5
    torch.testing.assert_close(random_resized_crop(given, uniforms, 1.0), given)
