"""The contract of a world model on images, for every family that takes them.

Which families do is not listed here: a family refuses a space with a TypeError.
"""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import DIAMOND, FAMILIES, IRIS, DeltaIRISConfig, Genie, WorldModel
from dreamgym.models.iris import TransformerConfig
from dreamgym.models.wrappers import EnsembleConfig
from tests import frozen_encoders
from tests.contract.test_models import (  # noqa: F401 - collected here, with the models below
    assert_compiles_to_one_graph,
    test_a_row_does_not_depend_on_its_neighbours,
    test_a_step_draws_nothing_from_the_global_generator,
    test_a_step_leaves_its_arguments_as_they_were,
    test_a_temperature_for_each_row_is_that_number_in_its_row,
    test_decoded_observations_are_in_the_space,
    test_every_leaf_is_batch_first_and_keeps_its_shape,
    test_imagine_is_repeated_steps,
    test_it_fits_with_products_in_bfloat16,
    test_observe_and_step_give_features_of_the_promised_width,
    test_predictions_have_one_number_a_row_in_their_ranges,
    test_prepare_is_the_same_function,
    test_same_noise_same_result_and_other_noise_another,
    test_the_loss_is_finite_reaches_every_parameter_and_ignores_padding,
)
from tests.small_worlds import PRETRAINED, STATISTICS

ACTIONS = gym.spaces.Discrete(3)
IMAGE = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
SPACES = {
    "image": IMAGE,
    "both": gym.spaces.Dict(
        {"camera": IMAGE, "joints": gym.spaces.Box(-3.0, 3.0, (4,), np.float32)}
    ),
}


SMALLER = {
    "ensemble": EnsembleConfig(members=2, elites=2),
    "diamond": DIAMOND.presets["diamond-16"],
    "delta-iris": DeltaIRISConfig(
        image_size=16,
        channels=(8, 8),
        halved=(True, True),
        tokeniser_updates=0,
        transformer=TransformerConfig(context=4, width=32, blocks=2),
    ),
    "genie": replace(Genie.presets["genie-16"], tokeniser_updates=0, action_updates=0),
    "iris": replace(IRIS.presets["iris-16"], tokeniser_updates=0),
}


def build(family: str, space: str) -> WorldModel:
    """Return a model with random weights and the family's default config, or a smaller one."""
    torch.manual_seed(0)
    config = PRETRAINED[family]() if family in PRETRAINED else SMALLER.get(family)
    config = config or FAMILIES[family].config_type()
    model = FAMILIES[family](SPACES[space], ACTIONS, config)
    moments = {"joints": STATISTICS.vector} if space == "both" else {}
    model.set_statistics(STATISTICS._replace(observation=moments))
    return model.eval().requires_grad_(False)


def takes(family: str, space: str) -> bool:
    if family in PRETRAINED and not frozen_encoders.INSTALLED:
        return False
    try:
        build(family, space)
    except TypeError:
        return False
    return True


CASES = [(family, space) for family in sorted(FAMILIES) for space in SPACES if takes(family, space)]


@pytest.fixture(params=CASES, ids="-".join)
def model(request) -> WorldModel:
    return build(*request.param)


@pytest.mark.parametrize("family", [family for family, space in CASES if space == "both"])
def test_the_step_compiles_to_one_graph_on_images_and_vectors(family):
    assert_compiles_to_one_graph(build(family, "both"))


def test_some_family_takes_each_of_them():
    assert {space for _, space in CASES} == {*SPACES}
