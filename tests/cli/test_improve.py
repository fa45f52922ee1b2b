"""The verb improve."""

from __future__ import annotations

import json
import shlex

import pytest

from dreamgym.cli import main
from dreamgym.cli.online import _config
from dreamgym.online import Branches


def run(line):
    with pytest.raises(SystemExit) as leave:
        main(shlex.split(line))
    return leave.value.code


def test_improve_writes_its_rounds_and_continues(tmp_path, capsys):
    line = (
        f"improve CartPole-v1 --real-steps 120 --out {tmp_path}/out --first-steps 80 "
        "--round-steps 40 --updates 2 --dream-steps 512 --evaluation-episodes 1 --seed 1 "
        f"--json {tmp_path}/figures.json"
    )
    assert not run(line)
    shown = capsys.readouterr().out
    assert "round 1: 80 real steps" in shown
    assert "round 2: 120 real steps" in shown
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["real_steps"] == 120
    assert [each["updates"] for each in figures["rounds"]] == [2, 2]
    assert run(f"{line} --noise 0.5") == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "config.noise was 0.3, here 0.5; give those to continue it, or another folder" in error
    assert not run(line)


def test_options_change_a_preset():
    settings = {"branch_last": 4, "branch_to": 30_000, "round_steps": 250}
    config = _config("mbpo", settings, 500, 0.9)
    assert config.algo == "SAC"
    assert config.round_steps == 250
    assert config.branches == Branches(first=1, last=4, from_steps=20_000, to_steps=30_000)
    assert config.fit.updates == 500
    assert config.train.gamma == 0.9
    assert config.train.real_share == 0.05


def test_an_unknown_preset_names_the_nearest(capsys):
    assert run("improve CartPole-v1 --real-steps 10 --out x --preset dreamr") == 1
    assert "did you mean 'dreamer'" in capsys.readouterr().err
