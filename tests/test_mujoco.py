"""MuJoCo's environments, with constant channels and contact forces, from record to a dream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dreamgym

pytest.importorskip("mujoco")


def test_a_dream_of_a_double_pendulum_is_about_as_long_as_its_episodes(tmp_path: Path) -> None:
    """One of its nine channels, a constraint force, never changes: it ended every dream."""
    data = dreamgym.record(
        "InvertedDoublePendulum-v5", steps=2000, out=tmp_path / "d.h5", policy="random", seed=0
    )
    card = dreamgym.check(data)
    config = dreamgym.default_config("mdn-rnn", updates=150)
    world = dreamgym.fit(data, family="mdn-rnn", config=config)
    envs = dreamgym.DreamVectorEnv(
        world, 64, output="numpy", episode_statistics=True, autoreset_mode="SameStep"
    )
    envs.reset(seed=0)
    envs.action_space.seed(0)
    lengths: list[int] = []
    for _ in range(60):
        observation, *_, info = envs.step(envs.action_space.sample())
        if "episode" in info:
            lengths += info["episode"]["l"][info["_episode"]].tolist()
    assert 0.6 * card.lengths["mean"] < np.mean(lengths) < 1.6 * card.lengths["mean"]
    assert observation.dtype == envs.single_observation_space.dtype
