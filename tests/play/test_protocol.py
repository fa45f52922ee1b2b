"""The messages of the page: each has one answer, and nothing in them is trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamgym.play import PlaySession
from dreamgym.play.protocol import Conversation
from tests.small_worlds import small_world


@pytest.fixture
def talk(cartpole, tmp_path):
    conversation = Conversation(cartpole, tmp_path / "out", seed=3)

    def say(**message):
        return json.loads(conversation.answer(json.dumps(message)))

    return say


def test_the_first_answer_tells_the_page_what_to_show(talk):
    hello = talk(do="hello")
    assert hello["kind"] == "hello"
    assert hello["controls"][0]["labels"] == ["push left", "push right"]
    assert [each["name"] for each in hello["starts"]] == ["real", "episode_starts", "anywhere"]
    assert [each["name"] for each in hello["observations"]][2] == "angle"
    assert all(each["low"] < each["high"] for each in hello["observations"])
    assert hello["seed"] == 3
    assert hello["has_picture"]
    assert hello["can_be_placed"]
    assert not hello["has_uncertainty"]


def test_a_step_shows_both_sides(talk):
    start = talk(do="reset", seed=1)
    assert (start["step"], start["reward"], start["past"]) == (0, None, [])
    assert (start["start"], start["row"]) == ("real", None)
    assert talk(do="reset", seed=1, start="anywhere", row=6)["row"] == 6
    talk(do="reset", seed=1)
    shown = talk(do="step", action=[1])
    assert (shown["kind"], shown["step"], shown["action"]) == ("moment", 1, [1.0])
    assert shown["frame"].startswith("data:image/jpeg;base64,")
    assert shown["real"]["frame"].startswith("data:image/jpeg;base64,")
    assert len(shown["values"]) == len(shown["real"]["values"]) == 4
    assert (shown["first"], shown["last"]) == (0, 1)


def test_time_branches_and_settings(talk):
    talk(do="reset", seed=1)
    for action in (1, 0, 1):
        talk(do="step", action=[action])
    assert talk(do="go", step=1)["step"] == 1
    assert talk(do="branch")["branch"] == 0
    talk(do="step", action=[0])
    back = talk(do="return", branch=0)
    assert (back["step"], [each["step"] for each in back["past"]]) == (1, [0])
    assert talk(do="drop", branch=0)["kind"] == "dropped"
    assert talk(do="set", temperature=2, horizon=9, player="random") == {
        "kind": "settings",
        "temperature": 2.0,
        "horizon": 9,
        "player": "random",
    }
    assert talk(do="step")["step"] == 2


def test_edits(talk):
    talk(do="reset", seed=1)
    latent = talk(do="latent", leaf="h", first=60)
    assert len(latent["values"]) == len(latent["low"]) == len(latent["high"]) == 4
    edited = talk(do="edit-latent", leaf="z", index=2, value=1.5)
    assert edited["edited"]
    believed = talk(do="edit-observation", index=2, value=0.1)
    assert believed["values"][2] == pytest.approx(0.1, abs=1e-3)
    placed = talk(do="place")
    assert placed["real"]["values"] == pytest.approx(placed["values"])


def test_files_are_named_by_the_server(talk, tmp_path):
    talk(do="reset", seed=1)
    talk(do="step", action=[1])
    saved = talk(do="save-episode", path="../../elsewhere", name="/etc/passwd")
    assert {Path(path).parent for path in saved["paths"]} == {tmp_path / "out"}
    assert sorted(each.name for each in tmp_path.rglob("*.h5")) == [
        "CartPole-MDNRNN-v0-dream.h5",
        "CartPole-MDNRNN-v0-real.h5",
    ]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"do": "fly"}, "not a message"),
        ({}, "not a message"),
        ({"do": "go"}, "no 'step'"),
        ({"do": "go", "step": "1"}, "whole number"),
        ({"do": "go", "step": True}, "whole number"),
        ({"do": "go", "step": 1e400}, "whole number"),
        ({"do": "step", "action": [5]}, "no choice"),
        ({"do": "step", "action": "left"}, "list of numbers|expected"),
        ({"do": "step"}, "no action"),
        ({"do": "reset", "seed": 0, "start": "../x"}, "known"),
        ({"do": "reset", "seed": 2**70}, "seed"),
        ({"do": "set", "temperature": "hot"}, "hot"),
        ({"do": "set", "horizon": 1e300}, "horizon"),
        ({"do": "set", "player": "nobody"}, "known"),
        ({"do": "edit-latent", "leaf": "z", "index": 0, "value": 1e400}, "finite"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_message_is_its_answer(talk, message, text):
    answer = talk(**message)
    assert answer["kind"] == "error"
    assert re.search(text, answer["text"])
    assert talk(do="reset", seed=0)["kind"] == "moment", "the session goes on"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Iterator[Conversation]:
    session = PlaySession(small_world(horizon=100), device="cpu")
    yield Conversation(session, tmp_path_factory.mktemp("out"))
    session.close()


NAMES = ("hello", "reset", "step", "go", "branch", "drop", "return", "set", "latent", "place")
NAMES += ("edit-latent", "edit-observation")
KEYS = ("seed", "start", "row", "action", "step", "branch", "temperature", "horizon", "player")
KEYS += ("leaf", "first", "index", "value", "same_noise")
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**66),
    st.floats(),
    st.sampled_from(["z", "you", "random", "bank", "anywhere", "", "plan:categorical-cem"]),
    st.lists(st.one_of(st.integers(-1, 3), st.floats(), st.text(max_size=2)), max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    message=st.one_of(
        st.builds(
            lambda name, rest: json.dumps({**rest, "do": name}),
            st.sampled_from(NAMES),
            st.dictionaries(st.sampled_from(KEYS), PLAIN, max_size=5),
        ),
        st.text(max_size=30),
        st.binary(max_size=30),
    )
)
def test_no_message_breaks_a_session(small, message):
    answer = json.loads(small.answer(message))
    assert answer["kind"] in ("hello", "moment", "branch", "dropped", "settings", "latent", "error")
    assert not answer.get("text", "").startswith("unexpected "), answer
    assert len(small.session.past) >= 1
