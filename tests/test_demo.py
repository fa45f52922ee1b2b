"""The demo in its short form: every stage runs and leaves its results."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dreamgym
from dreamgym.data import Dataset
from dreamgym.models import MDNRNNConfig

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo.py"


@pytest.mark.slow
def test_the_demo_runs_every_stage_and_removes_only_its_own_files(tmp_path):
    out = tmp_path / "demo"
    out.mkdir()
    (out / "mine.txt").write_text("not the demo's")
    command = [sys.executable, str(DEMO), "--short", "--out", str(out)]
    for _ in range(2):  # the second run overwrites the first one's files
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


@pytest.fixture(scope="module")
def demo():
    """The script as a module."""
    pytest.importorskip("stable_baselines3", reason="the demo needs dreamgym[demo]")
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo"]


def test_the_picture_shows_a_held_out_episode_of_the_world_s_own_dataset(demo, tmp_path):
    small = MDNRNNConfig(hidden=4, trunk=4, head=4)
    config = dreamgym.FitConfig(updates=1, batch_size=4, segment_length=4, starts=4, model=small)
    data = dreamgym.record("CartPole-v1", steps=400, out=tmp_path / "data.h5", seed=0)
    world = dreamgym.fit(data, config=config)
    shown = demo.longest_held_out(world, data)
    with Dataset(data) as dataset:
        _, held_out = dataset.split(config.held_out, 0)
        episodes = [dataset.episode(int(index)).observations for index in held_out]
    assert len(shown.real) == max(len(episode) for episode in episodes)
    assert any(np.array_equal(shown.real, episode) for episode in episodes)
    assert shown.dreamt.shape[1:] == shown.real.shape
    other = dreamgym.record("CartPole-v1", steps=50, out=tmp_path / "other.h5", seed=1)
    with pytest.raises(ValueError, match="is not the dataset"):
        demo.longest_held_out(world, other)
