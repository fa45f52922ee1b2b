"""The verb report: a page, JSON, the card of the world, and errors in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dreamgym.cli import main
from dreamgym.world import load
from dreamgym.world.zoo import path as shipped


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "cartpole.h5"
    with pytest.raises(SystemExit):
        main(f"record CartPole-v1 --steps 600 --seed 5 --out {out}".split())
    return out


@pytest.fixture
def world(tmp_path) -> Path:
    folder = tmp_path / "cartpole"
    shutil.copytree(shipped("CartPole-MDNRNN-v0"), folder)
    return folder


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as leave:
        main([str(word) for word in words])
    return int(leave.value.code or 0)


def test_a_report_with_policies_writes_page_json_and_card(world, data, tmp_path, capsys):
    page, figures = tmp_path / "report.html", tmp_path / "report.json"
    weights = (world / "model.safetensors").read_bytes()
    words = ["report", world, "--data", data, "--policies", "sticky:0.8", "--episodes", 2]
    assert run(*words, "--card", "--out", page, "--json", figures) == 0
    shown = capsys.readouterr()
    assert "cartpole: " in shown.out
    assert "report cartpole 2/2" in shown.err
    made = json.loads(figures.read_text())
    assert [row["name"] for row in made["figures"]["ranking"]["policies"]] == [
        "random",
        "sticky:0.8",
    ]
    assert made["verdict"].capitalize() in page.read_text()
    card = (world / "README.md").read_text()
    assert f"**{made['verdict'].capitalize()}**" in card
    assert "| sticky:0.8 |" in card
    assert made["findings"][0]["sentence"] in card
    assert card.index("card.png") < card.index("**"), "the picture comes first"
    assert (world / "card.png").read_bytes().startswith(b"\x89PNG")
    again = load(world)  # checksums hold
    assert again.quality["report"]["verdict"] == made["verdict"]
    assert again.quality["limits"]["reward_high"] == 1.0
    assert (world / "model.safetensors").read_bytes() == weights
    copy = again.save(tmp_path / "copy").joinpath("README.md").read_text()
    assert made["findings"][0]["sentence"] in copy
    assert "card.png" not in copy, "there is no picture beside it"


def test_several_worlds_are_laid_side_by_side(world, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("report", world, "CartPole-MDNRNN-v0", "--data", data, "--json", "both.json") == 0
    (page,) = tmp_path.glob("*-report.html")
    assert "Side by side" in page.read_text()
    assert len(json.loads(Path("both.json").read_text())) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere --data {data}", "nowhere"),
        ("CartPole-MDNRNN-v0 --data nothing.h5", "nothing.h5"),
        ("Pendulum-MDNRNN-v0 --data {data}", "has the spaces"),
        ("CartPole-MDNRNN-v0 --data {data} --env Pendulum-v1", "another environment"),
        ("CartPole-MDNRNN-v0 --data {data} --rank --seeds 0", "seeds=0"),
        ("CartPole-MDNRNN-v0 --data {data} --policies no.zip", "no.zip"),
    ],
)
def test_an_error_is_one_line(words, message, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("report", *words.format(data=data).split()) == 1
    errors = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "defect" not in errors[0]
    assert not list(tmp_path.glob("*.html"))
