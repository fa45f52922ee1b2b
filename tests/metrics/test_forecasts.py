"""Forecasts, their intervals and their baseline: what is measured on which episodes."""

from __future__ import annotations

import numpy as np
import pytest

from dreamgym.data import Dataset
from dreamgym.metrics import forecasts, terminations
from dreamgym.metrics.coverage import LEVELS, interval_calibration
from dreamgym.metrics.forecasts import Forecasts
from dreamgym.metrics.registry import metric_context
from dreamgym.models import MDNRNNConfig, ModelSpec
from tests.metrics.small_fits import Swing, record_swing


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with Dataset(record_swing(tmp_path_factory.mktemp("swing"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def model():
    config = MDNRNNConfig(hidden=4, trunk=4, head=4)
    spec = ModelSpec(family="mdn-rnn", config=config)
    return spec.build(Swing.observation_space, Swing.action_space).eval().requires_grad_(False)


@pytest.mark.parametrize("training", [None, np.arange(20, 40)])
def test_the_linear_baseline_is_not_fitted_to_what_it_forecasts(
    training, dataset, model, monkeypatch
):
    fits, fit_linear, forecast = [], forecasts.fit_linear, forecasts.forecast
    halves = []
    monkeypatch.setattr(
        forecasts, "fit_linear", lambda d, e, keys: fits.append(set(e)) or fit_linear(d, e, keys)
    )
    monkeypatch.setattr(
        "dreamgym.metrics.context.forecast",
        lambda model, dataset, half, **options: (
            halves.append(set(half)) or forecast(model, dataset, half, **options)
        ),
    )
    context = metric_context(model, dataset, np.arange(20), 0, training=training, horizon=5)
    assert len(context.forecasts) == len(fits) == 2
    for half, fitted in zip(halves, fits, strict=True):
        assert half < set(range(20))
        assert not half & fitted
        assert fitted == (set(training) if training is not None else set(range(20)) - half)


def half(samples, truth) -> Forecasts:
    """Return forecasts of one number at one horizon, from samples (N, S) and truth (N,)."""
    count = len(truth)
    return Forecasts(
        horizons=np.array([1]),
        alive=np.ones((1, count), bool),
        samples=samples[None, :, :, None],
        truth=truth[None, :, None],
        last=np.zeros((count, 1)),
        linear=np.zeros((1, count, 1)),
        spread=np.ones(1),
        uncertainty=np.zeros((1, count)),
    )


def test_recalibrated_coverage_counts_forecasts_without_width():
    rng = np.random.default_rng(0)
    halves = []
    for _ in range(2):
        samples, truth = rng.normal(size=(1000, 19)), rng.normal(size=1000)
        samples[:300] = 0.0  # three tenths are points, a third of them at the truth
        truth[:100] = 0.0
        halves.append(half(samples, truth))
    context = type("Context", (), {"forecasts": halves, "seed": 0})
    found = interval_calibration(context)["intervals"]["recalibrated"][0]
    assert found[:2] == pytest.approx(LEVELS[:2], abs=0.05)
    assert found[2] == pytest.approx(0.8, abs=0.005)  # no factor covers the other two tenths


def test_recalibrated_coverage_is_nominal_where_many_truths_lie_at_a_bound():
    rng = np.random.default_rng(0)
    halves = []
    for _ in range(2):
        samples = 0.3 * np.abs(rng.normal(size=(2000, 19))) ** 3  # the model never says exactly 0
        truth = np.where(rng.random(2000) < 0.7, 0.0, rng.random(2000))
        samples[:, :5] = 0.0  # but for a clamp: the ends of most intervals are the truth
        halves.append(half(samples, truth))
    context = type("Context", (), {"forecasts": halves, "seed": 0})
    figures = interval_calibration(context)["intervals"]
    assert figures["recalibrated"][0] == pytest.approx(LEVELS, abs=0.03)
    for level, halves in zip(LEVELS, figures["recalibrated_each_way"][0], strict=True):
        assert halves == pytest.approx([level, level], abs=0.04)


def test_lengths_are_compared_while_enough_windows_are_left(dataset, model):
    def detail(count):
        context = metric_context(model, dataset, np.arange(count), 0, horizon=40)
        return terminations.termination_detail(context)["termination"]

    figures = detail(60)
    real, dream, windows = (np.array(figures["survival"][k]) for k in ("real", "dream", "windows"))
    distance = np.abs(real - dream)
    assert figures["length_distance"] == distance[windows >= 32].max()
    assert windows.min() < 32
