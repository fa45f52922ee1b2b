"""Every example runs in its short form, from its folder of results to its picture."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from dreamgym.train import LEARNERS

pytest.importorskip("matplotlib", reason="the examples draw with dreamgym[plot]")
pytest.importorskip("stable_baselines3")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
STAGES = ("record", "fit", "dream", "train", "transfer", "report")
SLOW = {
    *("pixels_or_embeddings", "calibration", "cartpole", "from_minari", "prior_posterior"),
    *("car_racing", "take_cover"),
}
"""Examples whose short form takes more than a few seconds, or says little beyond another one."""

PROGRAMS = {"demo"}
"""Whole experiments, which are longer; they have tests of their own."""

SINGLE = sorted(
    path for folder in ("stories", "studies") for path in (EXAMPLES / folder).glob("*.py")
)
SINGLE.append(EXAMPLES / "ppo.py")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def run(script: Path, out: Path, *options: str) -> None:
    """Run an example, and look for its picture."""
    runpy.run_path(str(script))["main"](["--quick", "--out", str(out), *options])
    assert (out / f"{script.stem}.png").read_bytes().startswith(b"\x89PNG")


def test_the_stages_hand_files_to_each_other(tmp_path):
    for stage in STAGES:
        run(EXAMPLES / "stages" / f"{stage}.py", tmp_path)
    assert {path.stem for path in (EXAMPLES / "stages").glob("*.py")} == set(STAGES)
    assert "<html" in (tmp_path / "report.html").read_text()[:200]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(each, marks=pytest.mark.slow if each.stem in SLOW else (), id=each.stem)
        for each in SINGLE
    ],
)
def test_a_story_and_a_study_leave_a_picture(script, tmp_path):
    if script.stem == "from_minari":
        pytest.importorskip("minari")
    if script.stem == "take_cover":
        pytest.importorskip("vizdoom")
    if script.stem == "car_racing":
        pytest.importorskip("Box2D")
    run(script, tmp_path)


@pytest.mark.parametrize("learner", LEARNERS)
def test_pendulum_with_every_learner(learner, tmp_path, capsys):
    pytest.importorskip(LEARNERS[learner].requires)
    run(EXAMPLES / "pendulum.py", tmp_path, "--learner", learner)
    assert "real return -" in capsys.readouterr().out
    assert {path.suffix for path in tmp_path.iterdir()} == {LEARNERS[learner].suffix, ".png"}


@pytest.mark.parametrize("script", sorted(EXAMPLES.rglob("*.py")))
def test_an_example_is_short_and_is_listed(script):
    assert script.stem in PROGRAMS or len(script.read_text().splitlines()) < 150
    link = f"({script.relative_to(EXAMPLES).as_posix()})"
    assert link in (EXAMPLES / "README.md").read_text()
    assert "dreamgym._" not in script.read_text()
