"""Codecs: bounds of the space, and the range of the data."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models.nn.codecs import TransitionCodec, VectorCodec, float32_bounds
from dreamgym.models.statistics import Moments, measure_statistics

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
    codec.set_moments(Moments(*(leaf[1:] for leaf in MOMENTS[:5])), place=slice(1, 2))
    assert codec.mean.tolist() == [0.0, 0.0]
    assert codec.std.tolist() == [1.0, 0.5]
    torch.testing.assert_close(codec.delta_std, torch.tensor([1.0, 0.2]))


@pytest.mark.parametrize("value", [0.0, 0.1, -4e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("units", ["raw", "symlog", "standard", "change"])
def test_a_channel_that_never_changes_keeps_its_value_and_is_never_outside_the_data(
    value, dtype, units
):
    seen = np.random.default_rng(0).normal(size=(50, 2)).cumsum(0).astype(dtype)
    seen[:, 1] = value
    box = gym.spaces.Box(-np.inf, np.inf, (2,), dtype)
    changes = units == "change"
    codec = TransitionCodec(box, 0.3) if changes else VectorCodec(box, units)
    codec.set_moments(measure_statistics([(seen, np.zeros(49))]).vector)
    predicted = codec.encode(torch.from_numpy(seen)) + torch.tensor([0.0, 0.2])
    if changes:
        predicted, outside = codec.limit(predicted)
    else:
        outside = codec.outside_data(codec.decode(predicted), 0.3)
    assert not outside.any()
    assert (codec.decode(predicted)[:, 1] == np.float32(value)).all()
    if changes:  # an infinite margin switches ranges off
        unlimited = TransitionCodec(box, math.inf)
        unlimited.set_moments(measure_statistics([(seen, np.zeros(49))]).vector)
        assert unlimited.limit(predicted + 1e6)[0].isfinite().all()
    # The other channel still has a range.
    far = codec.encode(torch.from_numpy(seen)) + torch.tensor([50.0, 0.0])
    beyond = codec.limit(far)[1] if changes else codec.outside_data(codec.decode(far), 0.3)
    assert beyond.all()


def test_new_moments_free_a_channel_that_was_constant():
    codec = VectorCodec(BOX, "standard")
    codec.set_moments(measure_statistics([(np.ones((4, 2)), np.zeros(3))]).vector)
    codec.set_moments(MOMENTS)
    assert codec.decode(torch.tensor([[-9.0, 9.0]])).tolist() == [[-3.0, 3.0]]


@pytest.mark.parametrize("codec", [TransitionCodec, VectorCodec])
@pytest.mark.parametrize("offset", [4e6, -3e8])
def test_a_large_offset_in_float64_takes_no_digits_from_the_network(codec, offset):
    small = np.random.default_rng(0).normal(size=(200, 2))
    box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    vectors = codec(box, 0.3) if codec is TransitionCodec else codec(box, "standard")
    moments = measure_statistics([(small + offset, np.zeros(199))]).vector
    vectors.set_moments(moments)
    encoded = vectors.encode(torch.from_numpy(small + offset))
    assert encoded.dtype == torch.float32
    spread = torch.from_numpy(small.std(0)).float()
    expected = torch.from_numpy(np.diff(small, axis=0)).float() / spread
    torch.testing.assert_close(encoded.diff(dim=0), expected, atol=2e-5, rtol=1e-5)
    if codec is TransitionCodec:
        assert not vectors.limit(encoded)[1].any()
    else:
        assert not vectors.outside_data(vectors.decode(encoded), 0.0).any()


@pytest.mark.parametrize("codec", [TransitionCodec, VectorCodec])
def test_noise_stays_within_its_range_and_does_not_count_as_leaving_the_data(codec):
    """A sample in the tail of a noisy channel says nothing about where the dream is."""
    rng = np.random.default_rng(0)
    seen = np.stack([rng.normal(size=100).cumsum(), rng.uniform(-1, 1, 100)], 1)
    box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    vectors = codec(box, 0.3) if codec is TransitionCodec else codec(box, "standard")
    vectors.set_moments(measure_statistics([(seen, np.zeros(99))]).vector)
    z = vectors.encode(torch.tensor([[0.0, 30.0], [1000.0, 0.0]], dtype=torch.float64))
    if codec is TransitionCodec:
        z, outside = vectors.limit(z)
    else:
        outside = vectors.outside_data(vectors.decode(z), 0.3)
    assert outside.tolist() == [False, True]
    assert vectors.decode(z)[0, 1] == pytest.approx(seen[:, 1].max())


def test_one_typical_step_beyond_the_range_is_not_outside_the_data():
    codec = TransitionCodec(BOX, margin=0.0)
    codec.set_moments(MOMENTS)
    values = torch.tensor([[2.5, 0.0], [2.7, 0.0], [0.0, -1.2], [0.0, -1.4]])
    outside = codec.limit((values - MOMENTS.mean) / MOMENTS.std)[1]
    assert outside.tolist() == [False, True, False, True]


@pytest.mark.parametrize("codec", [TransitionCodec, VectorCodec])
def test_a_dream_that_passes_a_stop_is_held_there_and_one_that_passes_a_range_has_left(codec):
    """The stops of joints are not in the spaces of MuJoCo's environments."""
    box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    vectors = codec(box, 0.3) if codec is TransitionCodec else codec(box, "standard")
    stop = torch.tensor([False, True])
    vectors.set_moments(MOMENTS._replace(low_is_bound=stop & False, high_is_bound=stop))
    z = vectors.encode(torch.tensor([[0.0, 30.0], [0.0, -30.0], [30.0, 0.0]]))
    if codec is TransitionCodec:
        z, outside = vectors.limit(z)
    else:
        outside = vectors.outside_data(vectors.decode(z), 0.3)
    assert outside.tolist() == [False, True, True]
    assert vectors.decode(z)[0, 1] == MOMENTS.high[1]


def test_sparse_channels_weigh_little_unless_all_are_sparse():
    codec = TransitionCodec(BOX, 0.3)
    still = MOMENTS._replace(delta_std=1.4 * MOMENTS.std, still=torch.tensor([0.9, 0.1]))
    codec.set_moments(still)
    assert codec.likelihood_weight().tolist() == pytest.approx([0.01, 1.0])
    codec.set_moments(still._replace(still=torch.tensor([0.9, 0.9])))
    assert codec.likelihood_weight().tolist() == [1.0, 1.0]
    assert "weight" not in codec.state_dict()  # those of worlds of before have none
