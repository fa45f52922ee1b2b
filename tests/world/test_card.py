"""The card of a world: what a person reads first, and that no figure of a file can break it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dreamgym
from dreamgym.world import annotate
from dreamgym.world.card import card_text
from tests.small_worlds import small_world

REPORT = {
    "verdict": "usable with care",
    "data": "log.h5",
    "findings": [
        "do not use: Rewards are wrong. (far off)",
        "good: Dreams follow the actions. (x)",
    ],
    "ranking": {
        "count": 2,
        "regret": 1.5,
        "gap_mean": 0.1,
        "gap_max": 0.25,
        "policies": [["random", 9.0, 10.0], ["PPO", 90.0, 100.0]],
    },
}
TRANSFER = {
    "how": "PPO trained for 64 steps",
    "episodes": 100,
    "temperature": 1.15,
    "policies": [{"name": "PPO, seed 0", "real": 99.6, "interval": [98, 101.2], "dream": 90.0}],
    "baselines": [{"name": "random", "real": 10.0, "interval": [9.0, 11.0]}],
    "mean": 99.6,
    "interval": [98, 101.2],
    "bar": 95,
}
CARD = {"notes": ["It falls."], "commands": ["python make.py"], "licence": "MIT"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_world().save(tmp_path / "pole")


def test_the_verdict_and_real_returns_come_before_the_rest(folder):
    quality = {"report": REPORT, "transfer": TRANSFER}
    annotate(folder, quality=quality, card=CARD, picture=b"\x89PNG")
    card = (folder / "README.md").read_text()
    order = [
        "# pole",
        "![",
        "**Usable with care**, measured on log.h5.",
        "PPO trained for 64 steps, measured over 100 episodes of the real environment; the bar of "
        "each is 95.",
        "| PPO, seed 0 | 99.6 | 98.0 to 101.2 | 90.0 |",
        "| random | 10.0 | 9.0 to 11.0 |  |",
        'world="pole"',
        "Horizon 7 steps; temperature 1.15. Terminations are sampled.",
        "- Dreams follow the actions. (x)",
        "| PPO | 90.0 | 100.0 |",
        "## Known failures\n\n- It falls.",
        "10% of the range from random to best on average, and by 25% at most",
        "- Rewards are wrong. (far off)",
        "$ python make.py",
        "Licence: MIT",
    ]
    places = [card.index(text) for text in order]
    assert places == sorted(places)
    assert "learning_rate" not in card
    assert "provenance" not in card


def test_an_alarm_of_the_fit_that_the_report_found_too_is_listed_once(folder):
    report = {**REPORT, "findings": ["note: The rewards are all 1. (the whole dataset)"]}
    alarms = ["the rewards are all 1", "no episode terminates"]
    annotate(folder, quality={"report": report, "alarms": alarms})
    card = (folder / "README.md").read_text().casefold()
    assert [card.count(each) for each in alarms] == [1, 1]


@pytest.mark.parametrize(("gap", "known_failure"), [(0.2, False), (0.21, True)])
def test_a_large_gap_is_a_known_failure(folder, gap, known_failure):
    ranking = REPORT["ranking"] | {"gap_max": gap}
    annotate(folder, quality={"report": REPORT | {"ranking": ranking}})
    card = (folder / "README.md").read_text()
    assert card.count("- Gap: ") == 1
    assert (card.index("- Gap: ") > card.index("## Known failures")) == known_failure


def test_what_is_annotated_is_kept_by_a_load_and_a_save(folder, tmp_path):
    annotate(folder, quality={"transfer": TRANSFER}, card=CARD)
    weights = (folder / "model.safetensors").read_bytes()
    again = dreamgym.load(folder)
    assert again.quality["transfer"] == TRANSFER
    copy = again.save(tmp_path / "copy")
    assert "| PPO, seed 0 | 99.6 |" in (copy / "README.md").read_text()
    assert (copy / "model.safetensors").read_bytes() == weights


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(["report", "transfer", "open_loop", "alarms", "reward_rmse"]), JSON, JSON)
def test_figures_of_any_form_leave_a_card(key, value, card):
    description = {
        "family": "mdn-rnn",
        "observation_space": {},
        "env_spec": None,
        "horizon": 7,
        "provenance": {"card": card},
        "quality": {key: value},
    }
    assert card_text("pole", description).startswith("# pole\n")


@pytest.mark.parametrize("key", ["report", "transfer"])
def test_a_part_that_is_damaged_is_left_out_and_the_others_stay(folder, key):
    annotate(folder, quality={"report": REPORT, "transfer": TRANSFER} | {key: {"how": 3}})
    card = (folder / "README.md").read_text()
    assert ("**Usable with care**" in card) == (key != "report")
    assert ("| PPO, seed 0 |" in card) == (key != "transfer")
    assert json.loads((folder / "world.json").read_text())["quality"][key] == {"how": 3}
