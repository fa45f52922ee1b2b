"""The size of what metrics read and decode is limited, however large the observations are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.metrics import open_loop, windows
from dreamgym.metrics.windows import BURN_IN, MAX_WINDOW_BYTES, decode_chunk, window_shape

LIMITS = (2048, 64)


def data(*shape: int) -> Any:
    space = gym.spaces.Box(0, 255, shape, np.uint8)
    return SimpleNamespace(observation_space=space)


def test_usual_images_keep_their_windows_and_steps() -> None:
    assert window_shape(data(64, 64, 3), 50, LIMITS) == (64, 50)
    assert window_shape(data(64, 64, 3), 200, LIMITS) == (64, 200)


@pytest.mark.parametrize("steps", [5, 50, 200])
@pytest.mark.parametrize("side", [300, 600, 1000])
def test_large_images_get_fewer_and_shorter_windows(side: int, steps: int) -> None:
    count, length = window_shape(data(side, side, 3), steps, LIMITS)
    rows = count * (BURN_IN + length + 1)
    assert count >= 32
    assert 1 <= length <= steps
    assert rows * side * side * 3 <= MAX_WINDOW_BYTES or length == 1


def test_observations_are_decoded_in_chunks_of_limited_size() -> None:
    assert decode_chunk(data(64, 64, 3).observation_space, 8) > 64
    chunk = decode_chunk(data(600, 800, 3).observation_space, 8)
    assert 1 <= chunk <= (256 << 20) / (4 * 8 * 600 * 800 * 3)


def test_chunks_do_not_change_the_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    samples, k = 3, 2
    observation = torch.randn(10, BURN_IN + 6, 4, generator=generator)
    model = SimpleNamespace(
        observation_space=gym.spaces.Box(-1, 1, (4,), np.float32), decode=lambda state: state["z"]
    )
    drawn: Any = SimpleNamespace(segment=SimpleNamespace(observation=observation))
    state = {"z": torch.randn(7 * samples, 4, generator=generator)}
    rows = torch.tensor([0, 2, 3, 4, 6, 8, 9])

    def errors() -> Any:
        dreams = (k, rows, state)
        return open_loop._squared_errors(model, drawn, dreams, {"": torch.ones(4)}, samples)[""]

    whole = errors()
    monkeypatch.setattr(windows, "MAX_DECODE_BYTES", 2 * samples * 4 * 4)
    assert decode_chunk(model.observation_space, samples) == 2
    assert errors() == pytest.approx(whole, rel=1e-6)
