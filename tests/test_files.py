"""Files that the package writes."""

from __future__ import annotations

import json

import numpy as np

from dreamgym._files import json_text


def test_figures_that_are_not_finite_become_null() -> None:
    figures = {"a": float("nan"), "b": [np.float32(0.5), float("inf")], "c": np.int64(3), "d": True}
    assert json.loads(json_text(figures)) == {"a": None, "b": [0.5, None], "c": 3, "d": True}
