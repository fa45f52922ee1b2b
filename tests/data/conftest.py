from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from dreamgym.data import record

# Examples may be slow on a busy machine.
settings.register_profile("dreamgym", deadline=None)
settings.load_profile("dreamgym")


@pytest.fixture(scope="session")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thousand random steps of the real CartPole; shared, do not change it."""
    return record("CartPole-v1", steps=2000, out=tmp_path_factory.mktemp("data") / "cartpole.h5")


@pytest.fixture(scope="session")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thousand sticky steps of the real Pendulum; shared, do not change it."""
    out = tmp_path_factory.mktemp("data") / "pendulum.h5"
    return record("Pendulum-v1", steps=2000, out=out, policy="sticky:0.8", seed=1)
