"""Codecs: bounds of the space, and the range of the data."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models.nn.codecs import TransitionCodec, VectorCodec, float32_bounds
from dreamgym.models.statistics import Moments

BOX = gym.spaces.Box(-3.0, 3.0, (2,), np.float32)
MOMENTS = Moments(
    mean=torch.tensor([1.0, 0.0]),
    std=torch.tensor([2.0, 0.5]),
    low=torch.tensor([-1.0, -1.0]),
    high=torch.tensor([2.0, 1.0]),
    delta_std=torch.tensor([0.2, 0.1]),
)


@pytest.mark.parametrize("bound", [4.8, 0.1, np.pi, 1e300, np.inf])
def test_decoded_values_are_within_float64_bounds_too(bound):
    """0.1 and 4.8 are larger in float32 than in float64, so the nearest number is out of bounds."""
    box = gym.spaces.Box(-bound, bound, (2,), np.float64)
    decoded = VectorCodec(box, "raw").decode(torch.tensor([[-torch.inf, torch.inf]]))
    assert box.contains(decoded[0].double().numpy())
    low, high = float32_bounds(box)
    assert torch.equal(low, -high)


def test_a_transition_is_limited_to_the_space_and_to_the_widened_range_of_the_data():
    codec = TransitionCodec(BOX, margin=0.5)
    codec.set_moments(MOMENTS)
    # The first number's widened range is [-2.5, 3.5] in the space's units, beyond its bound of 3.
    values = torch.tensor([[-2.4, 0.0], [-2.6, 0.0], [9.0, 0.0], [0.0, 1.9], [0.0, 2.1]])
    limited, outside = codec.limit((values - MOMENTS.mean) / MOMENTS.std)
    assert outside.tolist() == [False, True, False, False, True]
    expected = torch.tensor([[-2.4, 0.0], [-2.5, 0.0], [3.0, 0.0], [0.0, 1.9], [0.0, 2.0]])
    torch.testing.assert_close(codec.decode(limited), expected)


def test_moments_of_one_place_leave_the_other_numbers_as_they_are():
    codec = TransitionCodec(BOX, margin=0.0)
    codec.set_moments(Moments(*(leaf[1:] for leaf in MOMENTS)), place=slice(1, 2))
    assert codec.mean.tolist() == [0.0, 0.0]
    assert codec.std.tolist() == [1.0, 0.5]
    torch.testing.assert_close(codec.delta_std, torch.tensor([1.0, 0.2]))
