"""Unfitted worlds: their dreams are meaningless, but quick to make and always the same."""

from __future__ import annotations

import pytest

from dreamgym.world.world import World
from tests.small_worlds import small_world

# short enough for truncations beside terminations: an unfitted head ends every other step
HORIZON = 2


@pytest.fixture(scope="session")
def discrete_world() -> World:
    return small_world(action="discrete", horizon=HORIZON)


@pytest.fixture(scope="session")
def box_world() -> World:
    return small_world(action="box", horizon=HORIZON)
