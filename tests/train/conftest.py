"""Worlds that were never fitted: what they dream is nonsense, but it is quick and never changes."""

from __future__ import annotations

import pytest

from dreamgym.world.world import World
from tests.small_worlds import small_world

# so short that dreams are truncated as well as terminated: an unfitted head ends every other step
HORIZON = 2


@pytest.fixture(scope="session")
def discrete_world() -> World:
    return small_world(action="discrete", horizon=HORIZON)


@pytest.fixture(scope="session")
def box_world() -> World:
    return small_world(action="box", horizon=HORIZON)
