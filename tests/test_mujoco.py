"""MuJoCo's environments, with constant channels and contact forces, from record to a dream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dreamgym

pytest.importorskip("mujoco")


def length_of_dreams(world: dreamgym.World, steps: int) -> float:
    """Return the mean length of the dreams that end in so many steps of random actions."""
    envs = dreamgym.DreamVectorEnv(
        world, 64, output="numpy", episode_statistics=True, autoreset_mode="SameStep"
    )
    observation, _ = envs.reset(seed=0)
    envs.action_space.seed(0)
    lengths: list[int] = []
    for _ in range(steps):
        observation, *_, info = envs.step(envs.action_space.sample())
        if "episode" in info:
            lengths += info["episode"]["l"][info["_episode"]].tolist()
    assert observation.dtype == envs.single_observation_space.dtype
    return float(np.mean(lengths))


def test_a_dream_of_a_double_pendulum_is_about_as_long_as_its_episodes(tmp_path: Path) -> None:
    """One of its nine channels, a constraint force, never changes: it ended every dream."""
    data = dreamgym.record(
        "InvertedDoublePendulum-v5", steps=2000, out=tmp_path / "d.h5", policy="random", seed=0
    )
    card = dreamgym.check(data)
    config = dreamgym.default_config("mdn-rnn", updates=150)
    world = dreamgym.fit(data, family="mdn-rnn", config=config)
    assert 0.6 * card.lengths["mean"] < length_of_dreams(world, 60) < 1.6 * card.lengths["mean"]


@pytest.mark.slow
def test_joints_that_meet_their_stops_do_not_end_the_dreams_of_a_pusher(tmp_path: Path) -> None:
    """Its space is unbounded, and a model that passed a stop by a little ended the dream."""
    # a hundred episodes: only what many of them reach counts as a stop
    data = dreamgym.record(
        "Pusher-v5", steps=10_000, out=tmp_path / "d.h5", policy="random", seed=0
    )
    config = dreamgym.default_config("mdn-rnn", updates=1000)
    world = dreamgym.fit(data, family="mdn-rnn", config=config)
    episode = dreamgym.check(data).lengths["mean"]
    assert length_of_dreams(world, 300) > 0.6 * episode
