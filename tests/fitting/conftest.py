"""Cheaper metrics: building a world would otherwise take longer than these small fits."""

from __future__ import annotations

import pytest

from dreamgym.metrics import open_loop


@pytest.fixture(autouse=True, scope="package")
def few_open_loop_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_loop, "MAX_ROW_STEPS", 10_000)
        yield
