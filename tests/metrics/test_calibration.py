"""Calibration, compared with counts by hand and with true probabilities."""

from __future__ import annotations

import pytest
import torch

from dreamgym.metrics.calibration import calibration


def test_figures_equal_those_counted_by_hand():
    predicted = torch.tensor([0.05, 0.05, 0.95, 0.85])
    truth = torch.tensor([False, True, True, True])
    found = calibration(predicted, truth)
    assert found.rate == 0.75
    assert found.predicted == pytest.approx(0.475)
    brier = (0.05**2 + 0.95**2 + 0.05**2 + 0.15**2) / 4
    assert found.brier == pytest.approx(brier)
    assert found.skill == pytest.approx(1 - brier / (0.75 * 0.25))
    # Bins [0, 0.1), [0.8, 0.9) and [0.9, 1]: off by 0.45 (twice), 0.15 and 0.05.
    assert found.ece == pytest.approx((2 * 0.45 + 0.15 + 0.05) / 4)


def test_true_probabilities_are_calibrated_and_sharper_ones_are_not():
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(50_000, generator=generator)
    happened = torch.rand(50_000, generator=generator) < chance
    exact = calibration(chance, happened)
    assert exact.ece < 0.01
    assert exact.skill == pytest.approx(1 / 3, abs=0.02)
    overconfident = calibration((chance > 0.5).float(), happened)
    assert overconfident.ece > 0.2
    assert overconfident.brier > exact.brier


def test_the_base_rate_has_no_skill_and_skill_is_undefined_without_variance():
    happened = torch.arange(100) < 20
    assert calibration(torch.full((100,), 0.2), happened).skill == pytest.approx(0)
    never = calibration(torch.zeros(5), torch.zeros(5, dtype=torch.bool))
    assert never.skill is None
    assert never.brier == never.ece == 0
    assert calibration(torch.ones(3), torch.ones(3, dtype=torch.bool)).ece == 0
