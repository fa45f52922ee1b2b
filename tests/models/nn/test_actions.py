"""Encoded actions: scaled by the bounds of their space, or standardised by the data."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dreamgym
from dreamgym.data import DatasetMetadata, FrameSkip
from dreamgym.models import FAMILIES, ModelSpec
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.statistics import measure_statistics
from tests.data.samples import write_random
from tests.small_worlds import OF_IMAGES, PRETRAINED, STATISTICS

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


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"jepa", "pets", *PRETRAINED}))
def test_others_keep_the_scale_of_the_space(family: str) -> None:
    try:
        spec = ModelSpec(family=family)
    except ValueError:
        pytest.skip("a wrapper: the model inside decides")
    images = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    model = spec.build(images if family in OF_IMAGES else gym.spaces.Box(-1, 1, (4,)), BOX)
    found = measure_statistics(
        [(np.zeros((2, 4)), np.zeros(1))], [np.float32([[7, 1], [2, 3], [1, 1]])]
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.set_statistics(STATISTICS._replace(action=found.action))
    for name, value in model.state_dict().items():
        if "encode_action" in name:
            assert torch.equal(value, before[name])


def test_integers_are_scaled_by_their_bounds_though_their_width_overflows_their_dtype() -> None:
    encoder = ActionEncoder(gym.spaces.Box(-128, 127, (1,), np.int8))
    assert encoder(torch.tensor([[-128], [127]])).flatten().tolist() == [-1, 1]


@pytest.mark.parametrize("standardise", [False, True])
def test_a_number_of_the_action_that_never_changed_has_no_effect(standardise: bool) -> None:
    actions = np.float32([[0.5, 1.0], [-1.0, 1.0], [1.5, 1.0]])
    encoder = ActionEncoder(BOX)
    encoder.fit(
        measure_statistics([(np.zeros((4, 1)), np.zeros(3))], [actions]).action,
        standardise=standardise,
    )
    encoded = encoder(torch.tensor([[1.0, 0.0], [1.0, 8.0], [-1.0, 8.0]]))
    assert encoded[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert encoded[0, 0] == encoded[1, 0] != encoded[2, 0]


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_actions_without_bounds_are_standardised_and_bounded_ones_keep_their_scale(
    unit: float,
) -> None:
    largest = np.finfo(np.float32).max  # often stands for no bound
    bounds = np.float32([np.inf, largest, 2.0])
    box = gym.spaces.Box(-bounds, bounds)
    actions = np.random.default_rng(0).normal(size=(50, 3)) * np.array([unit, unit, 1.0])
    actions = actions.astype(np.float32)
    encoder = ActionEncoder(FrameSkip(steps=2).space(box))
    encoder.fit(measure_statistics([(np.zeros((51, 1)), np.zeros(50))], [actions]).action)
    blocks = torch.from_numpy(actions.reshape(25, 6))
    encoded = encoder(blocks).reshape(50, 3)
    assert encoded[:, :2].std(0, correction=0).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)
    torch.testing.assert_close(encoded[:, 2], torch.from_numpy(actions[:, 2] / 2))


def test_a_number_with_one_possible_value_is_encoded_as_zero() -> None:
    box = gym.spaces.Box(np.float32([-1, 700]), np.float32([1, 700]))
    assert ActionEncoder(box)(torch.tensor([[0.5, 700.0]])).tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(2**29), gym.spaces.MultiDiscrete([2**62, 2**62, 2**62])]
)
def test_more_choices_than_can_be_encoded_are_refused(space, tmp_path) -> None:
    metadata = DatasetMetadata(
        observation_space=gym.spaces.Box(-1, 1, (3,)), action_space=gym.spaces.Discrete(2**29)
    )
    with pytest.raises(TypeError, match=r"choices.*at most 65,536.*TransformAction"):
        ActionEncoder(space)
    path = write_random(tmp_path / "many.h5", [50, 50], metadata)
    with pytest.raises(dreamgym.DreamgymError, match="at most 65,536"):
        dreamgym.fit(path)
