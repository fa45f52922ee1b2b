"""Observations of one Box or of a Dict of Boxes: one way to iterate over their parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dreamgym.data.images import image_layout

Observation = Tensor | dict[str, Tensor]
"""A batch of observations: one tensor, or a dict with one for each key of a Dict space."""

T = TypeVar("T")

_WIDE_UNSIGNED = tuple(map(np.dtype, (np.uint16, np.uint32, np.uint64)))
"""Dtypes for which torch has few operations; their tensors are int64."""

WHOLE = ""
"""Key of the only part of an observation that is not a Dict."""


def observation_boxes(space: gym.Space) -> dict[str, gym.spaces.Box]:
    """Return the Boxes of a space by key; a single Box has the key `WHOLE`.

    Raises:
        TypeError: a part is not a Box; the message names it.
    """
    spaces = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {WHOLE: space}
    boxes = {}
    for key, part in spaces.items():
        if not isinstance(part, gym.spaces.Box):
            where = f"the part {key!r} of the observation" if key else "the observation"
            raise TypeError(f"{where} is {part}; a world model takes a Box, or a Dict of them")
        boxes[key] = part
    return boxes


def only_part(space: gym.Space, family: str) -> tuple[str, gym.spaces.Box]:
    """Return the key and the Box of observations of one part, for a family that takes images alone.

    Raises:
        TypeError: there are several parts, or one is not a Box.
    """
    boxes = observation_boxes(space)
    if len(boxes) != 1:
        raise TypeError(
            f"the {family} family takes images alone, not {space}; select the key of the images, "
            "or use a family that takes several parts, such as rssm"
        )
    [(key, box)] = boxes.items()
    return key, box


def is_image(box: gym.spaces.Box) -> bool:
    """Return whether a Box holds images; see `image_layout` for the shapes that count as such."""
    return image_layout(box) is not None


def observation_bytes(space: gym.Space) -> int:
    """Return the size of one observation in bytes."""
    boxes = observation_boxes(space).values()
    return sum(int(np.prod(box.shape)) * np.dtype(box.dtype).itemsize for box in boxes)


def get_part(observation: Observation, key: str) -> Tensor:
    """Return one part of an observation by its key."""
    return observation if isinstance(observation, Tensor) else observation[key]


def join_parts(values: dict[str, T]) -> T | dict[str, T]:
    """Join values by key into an observation; the reverse of `get_part`.

    Returns:
        The value itself if its key is `WHOLE`, otherwise the dict.
    """
    return values.get(WHOLE, values)


def map_observation(function: Callable[[Tensor], Tensor], observation: Observation) -> Observation:
    """Apply a function to every part of an observation."""
    if isinstance(observation, Tensor):
        return function(observation)
    return {key: function(value) for key, value in observation.items()}


def as_tensors(observation: Any, device: torch.device | str = "cpu") -> Observation:
    """Convert an array, or a dict of arrays, to tensors on a device."""
    if isinstance(observation, dict):
        return {key: _as_tensor(value, device) for key, value in observation.items()}
    return _as_tensor(observation, device)


def _as_tensor(array: Any, device: torch.device | str) -> Tensor:
    array = np.ascontiguousarray(array)
    if array.dtype in _WIDE_UNSIGNED:
        array = array.astype(np.int64)
    return torch.from_numpy(array).to(device)


def tensor_dtype(dtype: Any) -> torch.dtype:
    """Return the dtype of tensors of observations with a NumPy dtype."""
    dtype = np.dtype(dtype)
    return torch.int64 if dtype in _WIDE_UNSIGNED else torch.from_numpy(np.empty(0, dtype)).dtype
