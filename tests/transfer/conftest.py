"""Small worlds fitted to real steps: better than noise, and no better than that."""

from __future__ import annotations

import pytest

import dreamgym
from dreamgym.world.world import World


@pytest.fixture(scope="session")
def cartpole_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    path = tmp_path_factory.mktemp("data") / "cartpole.h5"
    dreamgym.record("CartPole-v1", steps=2000, out=path, seed=0)
    config = dreamgym.FitConfig(updates=150)
    return dreamgym.fit(path, seed=0, config=config)


@pytest.fixture(scope="session")
def pendulum_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    path = tmp_path_factory.mktemp("data") / "pendulum.h5"
    dreamgym.record("Pendulum-v1", steps=2000, out=path, seed=0)
    return dreamgym.fit(path, seed=0, config=dreamgym.FitConfig(updates=50))
