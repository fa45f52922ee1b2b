from __future__ import annotations

import numpy as np
import pytest

from dreamgym.transfer.intervals import (
    difference_interval,
    interval,
    iqm,
    mean_interval,
    share_interval,
)


def test_its_coverage_of_the_true_mean_is_about_its_confidence():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        low, high = mean_interval(rng.normal(3.0, 2.0, 50), seed=trial)
        inside += low <= 3.0 <= high
    assert 0.89 <= inside / 200 <= 0.98


def test_its_width_is_that_of_the_normal_interval():
    values = np.random.default_rng(1).normal(size=1000)
    low, high = mean_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(1000), rel=0.05)


def test_same_seed_same_interval_and_no_use_of_the_global_generator():
    values = np.random.default_rng(2).normal(size=50)
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_one_value_and_equal_values_have_no_width():
    assert mean_interval(np.array([7.0])) == (7.0, 7.0)
    assert mean_interval(np.full(10, 500.0)) == (500.0, 500.0)


def test_large_samples_are_resampled_in_chunks():
    values = np.random.default_rng(5).normal(size=6000)
    low, high = mean_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(6000), rel=0.1)


def test_the_interquartile_mean_leaves_a_quarter_out_on_each_side():
    values = np.array([-1000.0, 1, 2, 3, 4, 5, 6, 1e6])
    assert iqm(values) == 3.5
    low, high = interval(iqm, values[1:-1])
    assert 1 <= low <= 3.5 <= high <= 6
    np.testing.assert_array_equal(iqm(np.stack([values, -values])), [3.5, -3.5])


def test_the_interval_of_a_difference():
    rng = np.random.default_rng(6)
    first, second = rng.normal(5, 1, 200), rng.normal(3, 2, 100)
    low, high = difference_interval(first, second)
    assert low < 2 < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(1 / 200 + 4 / 100), rel=0.15)
    # independent streams: a sample against itself still has the width of two
    low, high = difference_interval(first, first)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(2 / 200), rel=0.15)


def test_a_share_of_one_is_not_certain():
    low, high = share_interval(np.ones(100, bool))
    assert (low, high) == (pytest.approx(100 / (100 + 1.96**2), abs=1e-3), 1.0)  # Wilson 1927
    assert share_interval(np.zeros(100, bool))[1] == pytest.approx(1 - low)
