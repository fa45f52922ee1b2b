"""Small worlds, fitted once a session."""

from __future__ import annotations

import pytest

from tests.metrics.small_fits import Swing
from tests.trust import planted


@pytest.fixture(scope="session")
def swing_data(tmp_path_factory):
    return planted.record(Swing(), tmp_path_factory.mktemp("swing") / "swing.h5")


@pytest.fixture(scope="session")
def sound(swing_data):
    return planted.sound_world(swing_data, Swing())


@pytest.fixture(scope="session")
def two_actions(tmp_path_factory):
    path = planted.record(planted.Swings(), tmp_path_factory.mktemp("swings") / "swings.h5")
    return path, planted.sound_world(path, planted.Swings())
