"""Take Cover from pixels: the environment of the example, and the example from end to end."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import dreamgym
from dreamgym.models import MDNRNN

pytest.importorskip("vizdoom", reason="Take Cover needs dreamgym[doom]")
SCRIPT = Path(__file__).parents[1] / "examples" / "take_cover.py"


@pytest.fixture(scope="module")
def example():
    """The script as a module; Gymnasium finds its environment under the module's name."""
    spec = importlib.util.spec_from_file_location("take_cover", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["take_cover"] = module
    spec.loader.exec_module(module)
    yield module
    gym.registry.pop(module.ENV_ID)
    del sys.modules["take_cover"]


@pytest.fixture
def env(example):
    made = gym.make(example.ENV_ID)
    yield made
    made.close()


def play(env: gym.Env, seed: int) -> tuple[list[np.ndarray], list[float], bool, bool]:
    """Play an episode without moving; return frames, rewards, terminated and truncated."""
    frames, rewards = [env.reset(seed=seed)[0]], []
    while True:
        frame, reward, terminated, truncated, _ = env.step(0)
        frames.append(frame)
        rewards.append(float(reward))
        if terminated or truncated:
            return frames, rewards, terminated, truncated


def test_a_game_gives_images_and_tics_and_repeats_its_last_frame_at_death(env):
    frames, rewards, terminated, truncated = play(env, seed=3)
    assert terminated
    assert not truncated
    assert env.observation_space.contains(frames[-1])
    assert np.array_equal(frames[-1], frames[-2])
    assert frames[-1].any()
    assert set(rewards[:-1]) == {4.0}
    assert 0 < rewards[-1] <= 4
    again = play(env, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(frames, again[0], strict=True))
    assert not np.array_equal(frames[20], play(env, seed=4)[0][20])


def test_survival_to_the_time_limit_is_truncated_and_not_terminated(example):
    env = gym.make(example.ENV_ID, max_episode_steps=5)
    _, rewards, terminated, truncated = play(env, seed=0)
    env.close()
    assert len(rewards) == 5
    assert truncated
    assert not terminated
    assert gym.spec(example.ENV_ID).max_episode_steps * example.FRAME_SKIP == 2100


@pytest.mark.slow
def test_every_stage_runs_and_a_second_run_continues(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["take_cover.py", "--short", "--out", str(tmp_path)])
    example.main()
    figures = json.loads((tmp_path / "take-cover.json").read_text())
    chosen = "temperature 1, chosen, in other episodes"
    assert figures["policies"].keys() == {"random", "temperature 1", chosen}
    assert figures["frames"] == example.SHORT.steps
    first, world = (dreamgym.load(tmp_path / f"world-{number}") for number in (1, 2))
    assert isinstance(world.model, MDNRNN)
    assert world.default_view == "latent"
    assert (world.horizon, world.real_limit) == (example.SHORT.horizon, 525)
    assert first.provenance["dataset_steps"] == example.SHORT.random_steps
    assert "begun_from" in world.provenance["fit"]
    recorded = dreamgym.Dataset(tmp_path / "data" / "ppo-round-1.h5")
    assert (recorded.policy, recorded.num_steps) == ("ppo-round-1", 500)
    before = (tmp_path / "world-2" / "world.json").read_bytes()
    example.main()
    assert (tmp_path / "world-2" / "world.json").read_bytes() == before
    assert "Take Cover: tics survived" in capsys.readouterr().out
