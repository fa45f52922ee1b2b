"""The table of metrics: an entry of the table reaches fits, world.json and cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dreamgym
from dreamgym.data import Dataset
from dreamgym.metrics import METRICS, MetricContext, evaluate_metrics
from dreamgym.metrics.alarms import CHECKS, Alarm, Inspection
from dreamgym.models import MDNRNNConfig

CONFIG = dreamgym.FitConfig(
    updates=1,
    batch_size=4,
    segment_length=4,
    starts=4,
    horizon=5,
    model=MDNRNNConfig(hidden=4, trunk=4, head=4),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cartpole.h5"
    return dreamgym.record("CartPole-v1", steps=120, out=path, seed=0)


def reward_bias(context: MetricContext) -> dict[str, float]:
    """Return the mean error of the reward one step ahead."""
    predicted, reward, _ = context.one_step
    return {"reward_bias": float((predicted.reward - reward).mean())}


def test_one_function_and_one_line_add_a_figure_to_fits_and_worlds(data, tmp_path, monkeypatch):
    before = dreamgym.fit(data, config=CONFIG).quality
    monkeypatch.setitem(METRICS, "reward bias", reward_bias)
    world = dreamgym.fit(data, tmp_path / "w", config=CONFIG)
    saved = json.loads((tmp_path / "w" / "world.json").read_text())["quality"]
    assert saved["reward_bias"] == world.quality["reward_bias"] != 0
    # The other figures are those that they were without it.
    assert {key: value for key, value in saved.items() if key != "reward_bias"} == before
    with Dataset(data) as dataset:
        _, held_out = dataset.split(CONFIG.held_out, 0)
        assert "reward_bias" in evaluate_metrics(world.model, dataset, held_out)


def test_one_function_and_one_line_add_an_alarm_to_fits(data, monkeypatch):
    def check_size(context, raised):
        count = sum(parameter.numel() for parameter in context.model.parameters())
        return Inspection({"parameters": count}, [Alarm("size", f"{count} parameters")])

    monkeypatch.setitem(CHECKS, "size", check_size)
    world = dreamgym.fit(data, config=CONFIG)
    assert "size" in world.provenance["history"][-1]["alarms"]
    assert any(sentence.endswith(" parameters") for sentence in world.quality["alarms"])
