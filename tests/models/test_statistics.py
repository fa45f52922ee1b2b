"""Statistics for the normalisers: moments of all rows at any scale, and the worst return."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamgym.models.statistics import measure_statistics


def episodes(seed: int, offset: float, scale: float) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        (offset + scale * rng.normal(size=(length + 1, 3)), rng.normal(size=length))
        for length in rng.integers(1, 20, size=5)
    ]


@given(st.integers(0, 50), st.floats(-1e6, 1e6), st.floats(1e-2, 1e3))
def test_moments_are_those_of_all_rows_even_far_from_zero(seed, offset, scale):
    data = episodes(seed, offset, scale)
    rows = np.concatenate([observations for observations, _ in data])
    rewards = np.concatenate([rewards for _, rewards in data])
    deltas = np.concatenate([np.diff(observations, axis=0) for observations, _ in data])
    statistics = measure_statistics(data)
    moments = statistics.vector
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(moments.std, rows.std(0), rtol=1e-3)
    np.testing.assert_allclose(moments.delta_std, np.sqrt((deltas**2).mean(0)), rtol=1e-3)
    np.testing.assert_allclose(moments.low, rows.min(0), rtol=1e-6)
    np.testing.assert_allclose(moments.high, rows.max(0), rtol=1e-6)
    np.testing.assert_allclose(statistics.reward_mean, rewards.mean(), atol=1e-5)
    np.testing.assert_allclose(statistics.reward_std, rewards.std(), rtol=1e-3)


@given(st.integers(0, 50), st.floats(-25, 25))
def test_no_spread_is_too_small_and_none_too_large(seed, exponent):
    unit = 10.0**exponent
    data = [(unit * o, (unit * r).astype(np.float32)) for o, r in episodes(seed, 0.0, 1.0)]
    plain, scaled = measure_statistics(episodes(seed, 0.0, 1.0)), measure_statistics(data)
    for name in ("mean", "std", "low", "high", "delta_std"):
        expected = unit * getattr(plain.vector, name)
        torch.testing.assert_close(getattr(scaled.vector, name), expected, rtol=1e-9, atol=0)
    for name in ("reward_mean", "reward_std", "worst_return"):
        expected = unit * getattr(plain, name).double()
        torch.testing.assert_close(getattr(scaled, name), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("value", [0.1, -4e6, 1e-9])
def test_a_channel_that_varies_by_its_rounding_error_is_constant(value):
    rounding = np.float32(value) * (1 + np.float32(1e-7) * np.arange(4, dtype=np.float32) % 2)
    for column in (rounding, np.full(4, value)):
        moments = measure_statistics([(column[:, None], np.zeros(3))]).vector
        assert moments.constant.item()
        assert moments.std.item() == pytest.approx(abs(value), rel=1e-6)


def test_a_channel_that_only_changes_between_episodes_has_small_changes():
    """One goal in each episode: a change of one unit a step would leave the range at once."""
    data = [(np.full((5, 1), goal), np.zeros(4)) for goal in (-0.01, 0.0, 0.02)]
    moments = measure_statistics(data).vector
    assert not moments.constant.item()
    assert 0 < moments.delta_std.item() <= 1e-4 * moments.std.item()


def test_constant_channels_and_rewards_get_a_spread_of_one():
    statistics = measure_statistics([(np.ones((4, 2)), np.ones(3))])
    assert torch.equal(statistics.vector.std, torch.ones(2))
    assert torch.equal(statistics.vector.delta_std, torch.ones(2))
    assert statistics.reward_std == 1


def test_the_worst_return_is_the_lowest_to_an_episodes_end_and_at_most_zero():
    observations = np.zeros((4, 1))
    assert measure_statistics([(observations, np.array([1.0, -5.0, 2.0]))]).worst_return == -3.0
    assert measure_statistics([(observations, np.ones(3))]).worst_return == 0.0


def test_the_range_of_terminal_rewards_is_that_of_the_terminated_episodes():
    data = [(np.zeros((3, 1)), np.array([5.0, reward])) for reward in (-100.0, 100.0, 9.0)]
    found = measure_statistics(data, terminated=[True, False, True])
    assert (found.terminal_reward_low, found.terminal_reward_high) == (-100.0, 9.0)
    found = measure_statistics(data, terminated=[False] * 3)
    assert (found.terminal_reward_low, found.terminal_reward_high) == (-np.inf, np.inf)


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="no episodes"):
        measure_statistics([])


def test_parts_of_a_dict_have_their_own_moments_and_images_have_none():
    rng = np.random.default_rng(0)
    observations = {
        "image": rng.integers(0, 255, (4, 8, 8, 3)).astype(np.uint8),
        "speed": rng.normal(5.0, 2.0, (4, 2)).astype(np.float32),
    }
    statistics = measure_statistics([(observations, np.ones(3))])
    assert list(statistics.observation) == ["speed"]
    np.testing.assert_allclose(
        statistics.observation["speed"].mean, observations["speed"].mean(0), rtol=1e-5
    )


def test_box_actions_are_measured_and_discrete_ones_are_not():
    rng = np.random.default_rng(0)
    actions = [rng.normal(3.0, 2.0, (n, 2)).astype(np.float32) for n in (1, 5, 40)]
    rows = np.concatenate(actions)
    found = measure_statistics(episodes(0, 0.0, 1.0), actions).action
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.std, rows.std(0), rtol=1e-5)
    assert measure_statistics(episodes(0, 0.0, 1.0), [np.arange(4)]).action is None
    assert measure_statistics(episodes(0, 0.0, 1.0)).action is None


def stopped_walk(rng: np.random.Generator, length: int, low: float, high: float) -> np.ndarray:
    """A random walk (length, 1) between two stops."""
    walk = [rng.uniform(low, high) if np.isfinite(low) else 0.0]
    for change in rng.normal(scale=0.3, size=length - 1):
        walk.append(np.clip(walk[-1] + change, low, high))
    return np.array(walk)[:, None]


def bounds_of(columns: list[np.ndarray], random: bool = True) -> tuple[bool, bool]:
    episodes = [(x, np.zeros(len(x) - 1)) for x in columns]
    moments = measure_statistics(episodes, random=[random] * len(episodes)).vector
    return moments.low_is_bound.item(), moments.high_is_bound.item()


def test_a_stop_that_many_episodes_reach_is_a_bound():
    rng = np.random.default_rng(0)
    assert bounds_of([stopped_walk(rng, 100, -1, 1) for _ in range(40)]) == (True, True)
    assert bounds_of([stopped_walk(rng, 100, -np.inf, np.inf) for _ in range(40)]) == (False, False)
    # Three episodes may have met by chance.
    assert bounds_of([stopped_walk(rng, 100, -1, 1) for _ in range(3)]) == (False, False)


def test_where_a_policy_stops_or_turns_back_by_choice_is_no_bound():
    rng = np.random.default_rng(0)
    # A controller goes to its goal at 1 and stays there.
    reached = [1 - rng.uniform(1, 2) * 0.8 ** np.arange(60.0)[:, None] for _ in range(40)]
    assert bounds_of(reached, random=False) == (False, False)


def test_random_episodes_among_others_show_a_bound_that_the_others_keep():
    rng = np.random.default_rng(0)
    walks = [stopped_walk(rng, 100, -1, 1) for _ in range(20)]
    others = [np.full((9, 1), 0.2), np.full((9, 1), 1.5)]
    episodes = [(x, np.zeros(len(x) - 1)) for x in walks + others]
    random = [True] * 20 + [False] * 2
    moments = measure_statistics(episodes, random=random).vector
    assert (moments.low_is_bound.item(), moments.high_is_bound.item()) == (True, False)


def test_where_episodes_start_or_end_is_no_bound():
    rng = np.random.default_rng(0)
    falls = [np.linspace(9, rng.uniform(0, 4), 30)[:, None] for _ in range(40)]
    assert bounds_of(falls) == (False, False)
    # They end beyond a threshold of 5, as when a pole has fallen, or at a time limit.
    ends = [np.append(np.linspace(rng.uniform(0, 2), 4.9, 30), 5.1)[:, None] for _ in range(40)]
    assert bounds_of(ends) == (False, False)
    assert bounds_of([np.arange(50.0)[:, None]] * 40) == (False, False)


def test_a_space_keeps_a_bound_of_its_own_that_is_near_the_data():
    rng = np.random.default_rng(0)
    columns = [stopped_walk(rng, 100, -1, 1) for _ in range(40)]
    episodes = [(x, np.zeros(len(x) - 1)) for x in columns]
    moments = measure_statistics(episodes, random=[True] * 40).vector
    near = torch.tensor([1.05], dtype=torch.float64)
    assert moments.limits(-near, near) == (-near, near)
    far = torch.tensor([9.0], dtype=torch.float64)
    assert moments.limits(-far, far) == (moments.low, moments.high)


def test_a_channel_is_sparse_that_leaves_one_value_for_moments_only():
    rng = np.random.default_rng(0)
    rows = 400
    touches = np.where(rng.random(rows) < 0.1, rng.normal(size=rows), 0.0)
    switch = np.repeat([0.0, 1.0, 0.0], [150, 100, 150])
    columns = [touches, np.ones(rows), switch, rng.normal(size=rows), np.linspace(0, 1, rows)]
    moments = measure_statistics([(np.stack(columns, 1), np.zeros(rows - 1))]).vector
    assert moments.sparse.tolist() == [True, True, False, False, False]
