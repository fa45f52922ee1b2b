"""Ranking: correlations, regret, and a ranking that was interrupted continues."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from dreamgym.metrics import Limits
from dreamgym.metrics.correlation import spearman
from dreamgym.trust import RankingConfig
from dreamgym.trust.ranking import Ranking, agreement, spread_steps
from tests.metrics.small_fits import LIMIT, Swing

SMALL = RankingConfig(seeds=1, steps=1024, stages=1, num_envs=8, episodes=2, temperatures=(1.5,))


def rows(dream, real):
    return [
        {"name": f"policy {i}", "dream": [d - 1, d + 1], "real": [r - 1, r + 1]}
        for i, (d, r) in enumerate(zip(dream, real, strict=True))
    ]


def test_spearman_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 40).astype(float)  # with ties
    second = first + rng.normal(size=40)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert spearman(np.ones(5), np.arange(5.0)) is None


def test_agreement_has_correlations_and_regret():
    good = agreement(rows([1, 2, 3, 4, 50], [10, 20, 30, 40, 500]))
    assert good["spearman"] == pytest.approx(1)
    assert good["regret"] == 0
    low, high = good["spearman_interval"]
    assert low <= 1 <= high + 1e-9
    bad = agreement(rows([5, 4, 3, 2, 10], [10, 20, 30, 40, 0]))
    assert bad["spearman"] < 0
    assert bad["regret"] == 40
    assert bad["regret_share"] == 1
    assert (bad["best_in_dream"], bad["best_in_reality"]) == ("policy 4", "policy 3")


def test_stages_are_spread_over_the_returns_of_a_training():
    slow = [(100 * i, float(i)) for i in range(1, 11)]
    assert spread_steps(slow, 3) == [100, 400, 700]
    steep = [(100, 0.0), (200, 90.0), (300, 35.0), (400, 100.0), (500, 99.0)]
    assert spread_steps(steep, 3) == [100, 200, 300]
    assert spread_steps(steep[:2], 4) == [100, 200]
    assert spread_steps([], 4) == []


def test_an_interrupted_ranking_continues(sound, tmp_path, monkeypatch):
    def ranking():
        env = lambda: TimeLimit(Swing(), LIMIT)  # noqa: E731
        monkeypatch.setattr(Ranking, "_key", lambda self: {"key": 1})  # a function has no name
        return Ranking(sound, Limits(), SMALL, env, tmp_path / "work")

    seen = []

    def interrupt(done, total, figures):
        seen.append(figures.get("policy"))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ranking().run(None, interrupt)
    again = ranking()
    assert set(again.results) == set(seen[:2])
    measured = []
    original = Ranking._measure
    monkeypatch.setattr(
        Ranking,
        "_measure",
        lambda self, entry: measured.append(entry.name) or original(self, entry),
    )
    figures = again.run(None)
    assert measured == [name for name in measured if name not in seen[:2]]
    assert len(measured) == 2
    assert figures["policies"][0]["name"] == "random"
    assert [row["temperature"] for row in figures["sweep"]] == [1.0, 1.5]
