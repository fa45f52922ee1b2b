"""The helpers of the contract."""

from __future__ import annotations

import torch

from dreamgym.models import Prediction
from dreamgym.models.base import HOOKS, WorldModel, end_outside_data, select


def a_prediction() -> Prediction:
    return Prediction(
        torch.tensor([1.0, 2.0]), torch.tensor([0.25, 0.5]), uncertainty=torch.tensor([0.1, 0.2])
    )


def test_a_row_outside_the_data_ends_with_the_worst_return():
    outside = torch.tensor([False, True])
    reward, termination, uncertainty = end_outside_data(
        a_prediction(), outside, torch.tensor(-30.0)
    )
    assert reward.tolist() == [1.0, -30.0]
    assert termination.tolist() == [0.25, 1.0]
    assert torch.equal(uncertainty, a_prediction().uncertainty)


def test_a_model_that_cannot_tell_ends_nothing():
    prediction = a_prediction()
    assert end_outside_data(prediction, None, torch.tensor(-30.0)) is prediction


def test_hooks_are_the_optional_members_of_the_contract():
    assert "prepare" not in HOOKS
    assert not HOOKS.keys() & WorldModel.__abstractmethods__
    assert {"decodes", "before_fit", "diagnostics", "set_statistics"} <= HOOKS.keys()


def test_selecting_rows_works_on_leaves_of_any_rank_and_dtype():
    mask = torch.tensor([True, False])
    new = {"tokens": torch.tensor([[1, 2], [3, 4]]), "length": torch.tensor([5, 6])}
    old = {key: torch.zeros_like(leaf) for key, leaf in new.items()}
    selected = select(mask, new, old)
    assert selected["tokens"].tolist() == [[1, 2], [0, 0]]
    assert selected["length"].tolist() == [5, 0]
