"""The picture of a card: trajectories of numbers, frames of images, and nothing without either."""

from __future__ import annotations

import base64
import struct

import numpy as np
import pytest

from dreamgym.data.html_report import png
from dreamgym.trust.picture import card_picture

pytest.importorskip("matplotlib")

HORIZONS = [1, 5, 15]


def table(*names: str) -> dict:
    errors = np.linspace(0.1, 1.0, len(HORIZONS))[:, None] * np.ones(len(names))
    return {
        "names": list(names),
        "varies": [name != "constant" for name in names],
        "horizons": HORIZONS,
        "windows": [90, 80, 70],
        **{key: errors.tolist() for key in ("mean", "sampled", "repeat_last")},
    }


def numbers(channels: int) -> dict:
    real = np.cumsum(np.ones((channels, 20)), 1)
    return {"real": real.tolist(), "dreamt": [(real + k).tolist() for k in range(3)], "frames": []}


def frames(side: int, channels: int) -> dict:
    def encoded(seed: int) -> str:
        rows, columns = np.mgrid[:side, :side]
        pixels = 127 * (1 + np.sin((rows * seed + 3 * columns) / side))[..., None]
        pixels = pixels.repeat(channels, 2).astype(np.uint8)
        return base64.b64encode(png(pixels)).decode()

    shown = [
        {"key": "pixels", "step": step, "real": encoded(step), "dreamt": encoded(step + 99)}
        for step in (0, 1, 2, 5, 10, 15, 25, 50)
    ]
    return {"frames": shown}


CASES = {
    "one number": {"channels": table("x"), "examples": numbers(1)},
    "many numbers": {"channels": table("constant", *"abcdefg"), "examples": numbers(8)},
    "RGB": {"frames": table("image"), "examples": frames(64, 3)},
    "grey": {"frames": table("image"), "examples": frames(96, 1)},
    "both": {
        "channels": table("x"),
        "frames": table("image"),
        "examples": numbers(1) | frames(64, 3),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_the_picture_is_a_small_wide_png(case):
    picture = card_picture(CASES[case])
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert 2 < width / height < 5
    assert len(picture) < 150_000


@pytest.mark.parametrize("figures", [{}, {"examples": {}}, {"channels": table("x")}])
def test_a_world_that_does_not_decode_has_no_picture(figures):
    assert card_picture(figures) is None
