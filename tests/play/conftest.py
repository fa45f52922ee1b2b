"""Sessions: of the shipped CartPole, beside the real one, and of unfitted worlds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dreamgym
from dreamgym.play import PlaySession
from dreamgym.world import World

CARTPOLE = "CartPole-MDNRNN-v0"


@pytest.fixture(scope="session")
def cartpole_world() -> World:
    return dreamgym.load(CARTPOLE)


@pytest.fixture
def cartpole(cartpole_world: World) -> Iterator[PlaySession]:
    pytest.importorskip("pygame", reason="CartPole's own renderer needs pygame")
    session = PlaySession(cartpole_world, device="cpu")
    yield session
    session.close()
