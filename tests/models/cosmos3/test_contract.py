"""The contract of a world model, for Cosmos 3 with a tiny random pipeline.

Long dreams are left out: a model whose only memory is the last frame has none to lose, and a step
takes a twentieth of a second.
"""

from __future__ import annotations

import pytest

from dreamgym.models import WorldModel
from tests import tiny_cosmos
from tests.contract.test_models import (  # noqa: F401 - collected here, with the model below
    test_a_row_does_not_depend_on_its_neighbours,
    test_a_step_draws_nothing_from_the_global_generator,
    test_a_step_leaves_its_arguments_as_they_were,
    test_a_step_with_products_in_bfloat16_keeps_states_and_predictions_in_float32,
    test_a_temperature_for_each_row_is_that_number_in_its_row,
    test_decoded_observations_are_in_the_space,
    test_every_leaf_is_batch_first_and_keeps_its_shape,
    test_imagine_is_repeated_steps,
    test_it_fits_with_products_in_bfloat16,
    test_observe_and_step_give_features_of_the_promised_width,
    test_predictions_have_one_number_a_row_in_their_ranges,
    test_prepare_is_the_same_function,
    test_rows_that_begin_at_different_times_do_not_mix,
    test_same_noise_same_result_and_other_noise_another,
    test_the_loss_is_finite_reaches_every_parameter_and_ignores_padding,
    test_the_loss_of_a_transition_does_not_depend_on_later_ones,
    test_what_is_older_is_forgotten_first_in_an_episode_longer_than_any_window,
)
from tests.small_worlds import small_model

pytestmark = pytest.mark.skipif(not tiny_cosmos.INSTALLED, reason=tiny_cosmos.REASON)


@pytest.fixture
def model() -> WorldModel:
    return small_model("cosmos3")
