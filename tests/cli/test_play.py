"""`dreamgym play`: the page is there until Ctrl-C, and what is wrong is said before it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from dreamgym.cli import main
from dreamgym.cli.play import _names

pytest.importorskip("websockets")


def test_the_page_is_served_until_ctrl_c(tmp_path):
    command = [sys.executable, "-m", "dreamgym.cli", "play", "CartPole-MDNRNN-v0", "--no-browser"]
    process = subprocess.Popen(
        [*command, "--policy", "sticky:0.8"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/\S+/", line)
        with urllib.request.urlopen(url, timeout=20) as page:
            assert b"dreamgym play" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert process.stdout.read() == "ended\n"
    finally:
        process.kill()
        process.stdout.close()
    assert not list(tmp_path.iterdir()), "nothing is written that was not saved"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["NoSuchWorld"], "no world 'NoSuchWorld'"),
        (["CartPole-MDNRNN-v0", "--policy", "nope.zip"], "there is no policy nope.zip"),
        (["CartPole-MDNRNN-v0", "--policy", "plan:nobody"], "there is no planner 'nobody'"),
        (["CartPole-MDNRNN-v0", "--policy", "plan:icem"], "searches over real numbers"),
        (["CartPole-MDNRNN-v0", "--env", "Pendulum-v1"], "observation space of Pendulum-v1"),
        (["CartPole-MDNRNN-v0", "--env", "CartPole-v7"], "CartPole-v7"),
        (["CartPole-MDNRNN-v0", "--data", "nothing.h5"], "nothing.h5"),
    ],
)
def test_what_is_wrong_is_said_before_the_page_opens(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["play", *arguments, "--no-browser"])
    assert stop.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_policies_have_names_that_differ(tmp_path):
    files = [tmp_path / folder / "ppo.zip" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        file.touch()
    first, second = map(str, files)
    assert _names([first, "random"]) == {"ppo.zip": first, "random": "random"}
    assert _names([first, second]) == {first: first, second: second}


def test_without_its_extra_the_verb_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "websockets", None)
    monkeypatch.setitem(sys.modules, "websockets.sync.server", None)
    with pytest.raises(SystemExit) as stop:
        main(["play", "CartPole-MDNRNN-v0", "--no-browser"])
    assert stop.value.code == 1
    assert "pip install 'dreamgym[play]'" in capsys.readouterr().err
