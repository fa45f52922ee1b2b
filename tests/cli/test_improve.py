"""The verbs improve, act and learn."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time

import pytest

from dreamgym.cli import main
from dreamgym.cli.online import _config
from dreamgym.data import Dataset
from dreamgym.online import Branches, parallel


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


SMALL = "--updates 2 --dream-steps 512 --first-steps 80"


def test_act_and_learn_share_a_folder(tmp_path, capsys):
    act = f"act CartPole-v1 --out {tmp_path}/shared --round-steps 50"
    learn = f"learn {tmp_path}/shared {SMALL}"
    assert not run(f"{act} --steps 100")
    assert not run(f"{learn} --versions 1 --json {tmp_path}/learned.json")
    assert not run(f"{act} --steps 20 --noise 0.1 --json {tmp_path}/acted.json")
    assert json.loads((tmp_path / "learned.json").read_text())["real_steps"] == 100
    (acted,) = json.loads((tmp_path / "acted.json").read_text())["recorded"]
    assert (acted["steps"], acted["version"]) == (20, 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "00000.h5: 50 real steps, the first policy acting" in shown
    assert "version 1, 100 real steps" in shown
    assert "00002.h5: 20 real steps, version 1 acting" in shown
    assert run(f"act CartPol-v1 --out {tmp_path}/shared") == 1
    assert "CartPole" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.slow
def test_actor_and_learner_on_the_command_line_may_be_killed_and_started_again(tmp_path):
    shared = tmp_path / "shared"
    processes = []

    def start(line):
        command = [sys.executable, "-m", "dreamgym.cli", *shlex.split(line)]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        return processes[-1]

    def start_actor():
        return start(f"act CartPole-v1 --out {shared} --round-steps 50 --seed 1")

    def wait_until(condition):
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.05)

    def datasets():
        return sorted(shared.glob("episodes/*.h5"))

    def version():
        newest = parallel.read_weights(shared)
        return 0 if newest is None else newest["version"]

    try:
        actor, learner = start_actor(), start(f"learn {shared} {SMALL}")
        wait_until(lambda: len(datasets()) > 2 and list(shared.glob("episodes/*.partial")))
        actor.kill()
        actor.wait()
        kept = datasets()
        actor = start_actor()
        wait_until(lambda: len(datasets()) > len(kept) + 1)
        assert datasets()[: len(kept)] == kept
        wait_until(lambda: version() >= 1)
        learner.kill()
        learner.wait()
        before, steps = version(), len(datasets())
        wait_until(lambda: len(datasets()) > steps)  # the actor does not wait for it
        actor.kill()
        actor.wait()
        learner = start(f"learn {shared} {SMALL} --versions {before + 1}")
        assert learner.wait(120) == 0
        assert version() == before + 1
    finally:
        for process in processes:
            process.kill()
    for path in datasets():
        with Dataset(path) as data:
            data.verify()
    lines = [json.loads(line) for line in (shared / "actor.jsonl").read_text().splitlines()]
    assert {"version", "age_seconds", "age_steps", "time"} <= lines[0].keys()


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
