"""The report finds and names every planted fault, and says nothing bad of a sound world."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

import dreamgym
from dreamgym.errors import WorldError
from dreamgym.metrics import Limits
from dreamgym.trust import Report, page, report
from dreamgym.trust.findings import CAUTION, DO_NOT_USE
from tests.metrics.small_fits import LIMIT, Swing
from tests.trust import planted


def named(made: Report, level: str) -> dict[str, str]:
    """Return the sentences of findings of a level, by topic."""
    return {each.topic: each.sentence for each in made.findings if each.level == level}


@pytest.fixture(scope="module")
def sound_report(sound, swing_data):
    return report(sound, swing_data)


def test_a_sound_world_is_usable(sound_report):
    assert sound_report.verdict == "usable", str(sound_report)
    assert sound_report.figures["data"]["held_out"] < sound_report.figures["data"]["episodes"]


@pytest.mark.parametrize(
    ("plant", "level", "topic", "words"),
    [
        (planted.WrongSign, DO_NOT_USE, "reward", "wrong sign"),
        (planted.NeverEnds, DO_NOT_USE, "termination", "hardly ever terminate"),
        (planted.Deaf, DO_NOT_USE, "actions", "do not depend on the actions"),
        (planted.Overconfident, CAUTION, "intervals", "overconfident"),
        (planted.Blind, CAUTION, "channels", "speed"),
        (planted.Spike, DO_NOT_USE, "reward", "give rewards that no data has shown"),
    ],
)
def test_a_planted_fault_is_found_and_named(plant, level, topic, words, sound, swing_data):
    faulty = sound.with_model(plant(sound.model))
    made = report(faulty, swing_data, names=["angle", "speed"])
    sentences = [
        each.sentence for each in made.findings if (each.level, each.topic) == (level, topic)
    ]
    assert any(words in sentence for sentence in sentences), str(made)
    assert made.verdict != "usable"


def test_an_action_that_the_model_ignores_is_named(two_actions):
    path, world = two_actions
    assert "actions" not in named(report(world, path), CAUTION)
    made = report(world.with_model(planted.DeafToOne(world.model)), path)
    assert "number 1 of the actions, which matters" in named(made, CAUTION)["actions"]


def test_a_world_of_another_environment_is_named(sound, tmp_path):
    cartpole = dreamgym.record("CartPole-v1", steps=200, out=tmp_path / "cartpole.h5", seed=0)
    with pytest.raises(WorldError, match="has the spaces"):
        report(sound, cartpole)
    with pytest.raises(WorldError, match="real environment"):
        report(sound, planted.record(Swing(), tmp_path / "s.h5", steps=200), env="CartPole-v1")
    other = report(sound, planted.record(planted.Upside(), tmp_path / "upside.h5"))
    assert "horizon" in named(other, DO_NOT_USE)


def test_data_of_another_behaviour_is_named(sound, sound_report, tmp_path):
    assert "shift" not in named(sound_report, CAUTION)
    other = planted.record(Swing(), tmp_path / "brake.h5", policy=planted.brake)
    assert "another behaviour" in named(report(sound, other), CAUTION)["shift"]


def test_a_policy_that_exploits_the_dream_is_named(sound, swing_data):
    faulty = sound.with_model(planted.Spike(sound.model))
    policies = [planted.push, planted.brake]
    made = report(faulty, swing_data, policies, env=lambda: TimeLimit(Swing(), LIMIT))
    assert "push" in named(made, DO_NOT_USE)["exploitation"]
    assert made.figures["ranking"]["best_in_reality"] == "brake"
    assert made.figures["ranking"]["regret"] > 10


def test_recalibrated_intervals_hold_what_they_promise(sound_report):
    found = sound_report.figures["intervals"]
    enough = [i for i, count in enumerate(found["windows"]) if count >= 100]
    raw, again = (np.array([found[key][i] for i in enough]) for key in ("coverage", "recalibrated"))
    assert np.abs(raw - found["levels"]).max() > 0.07  # this model is not confident enough
    assert np.abs(again - found["levels"]).max() <= 0.07


def test_the_report_is_json_and_one_page_without_network(sound_report, tmp_path):
    text = sound_report.save(tmp_path / "report.json").read_text()
    assert json.loads(text)["verdict"] == "usable"
    html = sound_report.save(tmp_path / "report.html").read_text()
    assert html.index("Usable") < html.index("Open-loop forecasts")
    assert "<svg" in html
    assert len(html) < 5_000_000
    assert "http" not in html
    assert "src='/" not in html
    both = page([sound_report, sound_report])
    assert "Side by side" in both


def test_the_limits_of_the_fit_count_beside_those_of_other_data():
    narrow, wide = (
        Limits(reward_low=low, reward_high=high, longest_episode=n)
        for low, high, n in ((-1.0, 2.0, 10), (-5.0, 1.0, 7))
    )
    joined = narrow.joined(wide)
    assert (joined.reward_low, joined.reward_high, joined.longest_episode) == (-5.0, 2.0, 10)
    assert joined.distance is None
    assert Limits.from_json(joined.to_json()) == joined
    assert Limits.from_json(None) == Limits()
