"""What a report says of the reward follows from how much of it the dream predicts."""

from __future__ import annotations

import pytest

from dreamgym.trust.findings import CAUTION, GOOD, NOTE, reward


@pytest.mark.parametrize(
    ("correlation", "level"), [(0.95, GOOD), (0.71, GOOD), (0.5, NOTE), (0.2, CAUTION)]
)
def test_a_reward_is_called_well_predicted_only_where_it_is(correlation, level):
    found = {
        "spread": 9.0,
        "low": -100.0,
        "high": 100.0,
        "correlation": correlation,
        "rank_correlation": correlation,
        "rmse": 10.0,
        "mean": 0.0,
        "bias": 0.0,
        "count": 5000,
    }
    assert [each.level for each in reward({"reward": found})] == [level]
