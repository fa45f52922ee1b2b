"""The demo in its short form: every stage runs, and leaves what it says it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dreamgym

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo.py"


@pytest.mark.slow
def test_the_demo_walks_the_whole_way_and_clears_only_what_is_its_own(tmp_path):
    out = tmp_path / "demo"
    out.mkdir()
    (out / "mine.txt").write_text("not the demo's")
    command = [sys.executable, str(DEMO), "--short", "--out", str(out)]
    for _ in range(2):  # the second time over the first one's files
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    for shown in ("random", "PPO on real steps", "PPO in the dream", "95% interval"):
        assert shown in done.stdout
    figures = json.loads((out / "demo.json").read_text())["policies"]
    assert figures["PPO in the dream"]["real_steps"] == 1000
    assert figures["random"]["episodes"] == 5
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert dreamgym.check(out / "cartpole.h5").ok
    assert dreamgym.load(out / "worlds" / "cartpole").env_id == "CartPole-v1"
    assert (out / "cartpole-ppo.zip").is_file()
    assert (out / "mine.txt").read_text() == "not the demo's"
