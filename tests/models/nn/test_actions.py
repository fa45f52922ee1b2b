"""Encoded actions: scaled by the bounds of their space, or standardised by the data."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamgym.data import FrameSkip
from dreamgym.models import FAMILIES, ModelSpec
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.statistics import measure_statistics
from tests.small_worlds import STATISTICS

BOX = gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 8]))


@given(st.integers(1, 6), st.integers(0, 2**16))
def test_all_actions_of_a_block_have_the_same_scale(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    singles = rng.normal([1.0, -3.0], [2.0, 0.1], (7, k, 2)).astype(np.float32)
    mean, std = torch.tensor([1.0, -3.0]), torch.tensor([2.0, 0.1])
    skip = FrameSkip(steps=k)
    encoder = ActionEncoder(skip.space(BOX))
    encoder.set_moments(mean, std)
    encoded = encoder(torch.from_numpy(skip.join(singles, BOX)))
    expected = (torch.from_numpy(singles) - mean) / std
    torch.testing.assert_close(encoded, expected.flatten(1))


def test_by_default_actions_are_scaled_by_their_bounds() -> None:
    encoded = ActionEncoder(BOX)(torch.tensor([[-2.0, 0.0], [0.0, 4.0], [2.0, 8.0]]))
    assert encoded.tolist() == [[-1, -1], [0, 0], [1, 1]]


def test_discrete_actions_and_wrong_sizes_are_not_standardised() -> None:
    with pytest.raises(TypeError, match="only a Box"):
        ActionEncoder(gym.spaces.Discrete(3)).set_moments(torch.zeros(1), torch.ones(1))
    with pytest.raises(ValueError, match="3 numbers do not divide the 2"):
        ActionEncoder(BOX).set_moments(torch.zeros(3), torch.ones(3))


@pytest.mark.parametrize("family", ["jepa", "pets"])
def test_families_whose_authors_do_so_standardise_actions(family: str) -> None:
    """Whatever the scale of the actions' units, the network sees the same numbers."""
    rng = np.random.default_rng(0)
    actions = rng.normal(0.3, 0.2, (50, 2)).astype(np.float32)
    seen = []
    for unit in (1.0, 1000.0):
        space = gym.spaces.Box(-5 * unit, 5 * unit, (2,), np.float32)
        model = ModelSpec(family=family).build(gym.spaces.Box(-1, 1, (4,)), space)
        found = measure_statistics([(np.zeros((2, 4)), np.zeros(1))], [unit * actions])
        model.set_statistics(STATISTICS._replace(action=found.action))
        seen.append(model.encode_action(torch.from_numpy(unit * actions)))
    torch.testing.assert_close(seen[0], seen[1])
    torch.testing.assert_close(seen[0].std(0, correction=0), torch.ones(2))


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"jepa", "pets"}))
def test_others_keep_the_scale_of_the_space(family: str) -> None:
    try:
        spec = ModelSpec(family=family)
    except ValueError:
        pytest.skip("a wrapper: the model inside decides")
    model = spec.build(gym.spaces.Box(-1, 1, (4,)), BOX)
    found = measure_statistics([(np.zeros((2, 4)), np.zeros(1))], [np.full((3, 2), 7, np.float32)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.set_statistics(STATISTICS._replace(action=found.action))
    for name, value in model.state_dict().items():
        if "encode_action" in name:
            assert torch.equal(value, before[name])


def test_integers_are_scaled_by_their_bounds_though_their_width_overflows_their_dtype() -> None:
    encoder = ActionEncoder(gym.spaces.Box(-128, 127, (1,), np.int8))
    assert encoder(torch.tensor([[-128], [127]])).flatten().tolist() == [-1, 1]


def test_numbers_without_bounds_are_standardised_by_the_data() -> None:
    """Divided by the largest float32, which stands for no bound, all actions would be the same."""
    largest = np.finfo(np.float32).max
    low, high = np.float32([-largest, -np.inf, 0, -2]), np.float32([largest, np.inf, np.inf, 2])
    encoder = ActionEncoder(gym.spaces.Box(low, high))
    action = torch.tensor([[7.0, 7.0, 7.0, 1.0]])
    assert encoder(action).tolist() == [[7, 7, 7, 0.5]]
    rng = np.random.default_rng(0)
    data = rng.normal(5.0, 2.0, (1000, 4)).astype(np.float32)
    encoder.fit_unbounded(measure_statistics([(data, data[1:, 0])], [data]).action)
    encoded = encoder(torch.from_numpy(data))
    torch.testing.assert_close(encoded[:, :3].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded[:, :3].std(0), torch.ones(3), atol=1e-3, rtol=0)
    assert torch.equal(encoded[:, 3], torch.from_numpy(data[:, 3] / 2))
