"""Observations of one Box, or of a Dict of them: one way to go over their parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

Observation = Tensor | dict[str, Tensor]

"""A batch of observations: a tensor, or one for each key of a Dict space."""


T = TypeVar("T")


WHOLE = ""

"""The key of the only part of an observation that is no Dict."""


def observation_boxes(space: gym.Space) -> dict[str, gym.spaces.Box]:
    """The boxes of a space by key; a lone Box has the key `WHOLE`.

    Raises:
        TypeError: a part is no Box; it is named.
    """
    spaces = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {WHOLE: space}
    boxes = {}
    for key, part in spaces.items():
        if not isinstance(part, gym.spaces.Box):
            where = f"the part {key!r} of the observation" if key else "the observation"
            raise TypeError(f"{where} is {part}; a world model takes a Box, or a Dict of them")
        boxes[key] = part
    return boxes


def is_image(box: gym.spaces.Box) -> bool:
    """Whether a box holds images: bytes of shape (height, width, channels)."""
    return box.dtype == np.uint8 and len(box.shape) == 3


def get_part(observation: Observation, key: str) -> Tensor:
    """One part of an observation, by its key."""
    return observation if isinstance(observation, Tensor) else observation[key]


def map_observation(function: Callable[[Tensor], Tensor], observation: Observation) -> Observation:
    """The observation with a function applied to every part."""
    if isinstance(observation, Tensor):
        return function(observation)
    return {key: function(value) for key, value in observation.items()}


def as_tensors(observation: Any, device: torch.device | str = "cpu") -> Observation:
    """An array, or a dict of them, as tensors on a device."""
    if isinstance(observation, dict):
        return {key: _as_tensor(value, device) for key, value in observation.items()}
    return _as_tensor(observation, device)


def _as_tensor(array: Any, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def join_parts(values: dict[str, T]) -> T | dict[str, T]:
    """What is made of these parts: the lone one itself, or the dict; the reverse of `part`."""
    return values.get(WHOLE, values)
