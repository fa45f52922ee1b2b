"""The learning rate as a function of the update."""

from __future__ import annotations

import itertools

import pytest

from dreamgym import OptimizerConfig
from dreamgym.fitting.optimizer import learning_rate


def rates(updates: int, **settings) -> list[float]:
    config = OptimizerConfig(learning_rate=2.0, **settings)
    return [learning_rate(config, update, updates) for update in range(updates)]


def test_a_warm_up_share_then_the_cosine_decays_to_zero():
    seen = rates(1000, warm_up=0.1)
    assert seen[:100] == pytest.approx([2.0 * (k + 1) / 100 for k in range(100)])
    assert seen[100] == 2.0
    assert seen[550] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(seen[100:]))
    assert 0 < seen[-1] < 1e-4


def test_a_warm_up_of_several_updates_then_constant():
    seen = rates(50, warm_up=10, schedule="constant")
    assert seen[:10] == pytest.approx([0.2 * (k + 1) for k in range(10)])
    assert set(seen[10:]) == {2.0}


def test_without_warm_up_the_first_update_has_the_peak():
    assert rates(5, warm_up=0)[0] == 2.0
    assert rates(5, warm_up=1000, schedule="constant") == pytest.approx(
        [0.002 * (k + 1) for k in range(5)]
    )


def test_each_phase_has_its_own_schedule():
    config = OptimizerConfig()
    seen = [learning_rate(config, update, 150, (50,)) for update in range(150)]
    assert seen[:50] == [learning_rate(config, update, 50) for update in range(50)]
    assert seen[50:] == [learning_rate(config, update, 100) for update in range(100)]


@pytest.mark.parametrize("start", [0, 100, 500])
def test_a_phase_start_outside_the_fit_is_ignored(start):
    config = OptimizerConfig()
    assert learning_rate(config, 70, 100, (start,)) == learning_rate(config, 70, 100)
