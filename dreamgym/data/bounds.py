"""Observations outside the bounds that their space declares.

A dream gives observations within its space. So a world does not keep the bounds that its data
contradict, and `record`, `check` and `fit` say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data.layout import SINGLE_KEY, observation_columns
from dreamgym.data.storage import Column, Source

Array = NDArray[Any]

TOLERANCE = 1e-5
"""Tolerated distance from a bound, relative to the width of the range or to the bound: rounding."""

_BLOCK_BYTES = 32 << 20
_LISTED_CHANNELS = 4

CONSEQUENCE = (
    "A world fitted to them has no bounds there; to give it the right ones, declare them in the "
    "environment, or open the data with ForeignOptions(observation_space=...)"
)
"""What follows for a world, and what to do."""


class OutsideChannel(NamedTuple):
    """A channel of the observations with values outside its bounds.

    Attributes:
        channel: index in the flattened observation.
        bounds: lower and upper bound that the space declares.
        found: smallest and largest value in the data.
        share: share of the rows that lie outside.
    """

    channel: int
    bounds: tuple[float, float]
    found: tuple[float, float]
    share: float

    def __str__(self) -> str:
        (low, high), (smallest, largest) = self.bounds, self.found
        return (
            f"channel {self.channel} is within {low:.6g} and {high:.6g} by the space and from "
            f"{smallest:.6g} to {largest:.6g} in the data ({self.share:.1%} of the rows outside)"
        )


def outside_observations(source: Source) -> dict[str, list[OutsideChannel]]:
    """Return the channels with values outside their bounds, by observation key; it reads all rows.

    Keys whose bounds are the limits of their dtype, as of most images, are not read.
    """
    boxes = source.metadata.observation_columns()
    return {
        key: _outside_channels(source.observations[key], box, source.table.num_rows)
        for key, box in boxes.items()
    }


def _outside_channels(column: Column, box: spaces.Box, num_rows: int) -> list[OutsideChannel]:
    """Return the channels with values outside their bounds, the worst first.

    Args:
        column: rows of one observation key.
        box: their space.
        num_rows: number of rows.
    """
    if not _can_be_outside(box):
        return []
    low, high = _widened(box)
    size = low.size
    counts, smallest, largest = np.zeros(size), np.full(size, np.inf), np.full(size, -np.inf)
    step = max(1, _BLOCK_BYTES // (8 * size))
    for first in range(0, num_rows, step):
        rows = column.read(first, min(first + step, num_rows)).reshape(-1, size).astype(np.float64)
        rows = rows[np.isfinite(rows).all(1)]
        counts += ((rows < low) | (rows > high)).sum(0)
        smallest = np.minimum(smallest, rows.min(0, initial=np.inf))
        largest = np.maximum(largest, rows.max(0, initial=-np.inf))
    bounds = (box.low.reshape(-1), box.high.reshape(-1))
    found = [
        OutsideChannel(
            channel=int(i),
            bounds=(float(bounds[0][i]), float(bounds[1][i])),
            found=(float(smallest[i]), float(largest[i])),
            share=float(counts[i] / max(1, num_rows)),
        )
        for i in np.flatnonzero(counts)
    ]
    return sorted(found, key=lambda channel: -channel.share)


def bounds_findings(outside: Mapping[str, list[OutsideChannel]]) -> list[str]:
    """Return what a user should know about observations outside their spaces.

    Args:
        outside: channels with values outside their bounds, by observation key.
    """
    findings = []
    for key, channels in outside.items():
        if not channels:
            continue
        listed = "; ".join(map(str, channels[:_LISTED_CHANNELS]))
        hidden = len(channels) - _LISTED_CHANNELS
        more = f"; and {hidden} more" if hidden > 0 else ""
        findings.append(
            f"observations of {key!r} lie outside their space: {listed}{more}. {CONSEQUENCE}"
        )
    return findings


def action_bounds_findings(space: gym.Space[Any]) -> list[str]:
    """Return a finding about actions without bounds: a world has them, and no learner acts there.

    Args:
        space: Space of the actions.
    """
    if not isinstance(space, spaces.Box) or space.is_bounded():
        return []
    return [
        f"the action space {space} has an infinite bound, and learners need finite ones: no policy "
        "can be trained in a world of it. Convert a foreign file again with its environment "
        "(`--env ENV`) or ForeignOptions(action_space=Box(low, high)), or record the environment "
        "inside gymnasium.wrappers.TransformAction with a bounded space"
    ]


def widened_space(
    space: gym.Space[Any], outside: Mapping[str, list[OutsideChannel]]
) -> gym.Space[Any]:
    """Return an observation space without the bounds that the data contradict.

    Args:
        space: space that the environment declares.
        outside: channels with values outside their bounds, by observation key.
    """
    if not any(outside.values()):
        return space
    boxes = {
        key: _without_bounds(box, outside.get(key, []))
        for key, box in observation_columns(space).items()
    }
    return spaces.Dict(list(boxes.items())) if isinstance(space, spaces.Dict) else boxes[SINGLE_KEY]


def covers(space: gym.Space[Any], other: gym.Space[Any]) -> bool:
    """Return whether an observation space is another one, or that with wider bounds."""
    if type(space) is not type(other):
        return False
    if isinstance(space, spaces.Dict) and isinstance(other, spaces.Dict):
        same_keys = list(space.spaces) == list(other.spaces)
        return same_keys and all(covers(space[key], other[key]) for key in space.spaces)
    if not isinstance(space, spaces.Box) or not isinstance(other, spaces.Box):
        return space == other
    same = space.shape == other.shape and space.dtype == other.dtype
    return same and bool((space.low <= other.low).all() and (space.high >= other.high).all())


def _without_bounds(box: spaces.Box, channels: list[OutsideChannel]) -> spaces.Box:
    low, high = box.low.copy(), box.high.copy()
    lowest, highest = _limits(box.dtype)
    for outside in channels:
        if outside.found[0] < outside.bounds[0]:
            low.reshape(-1)[outside.channel] = lowest
        if outside.found[1] > outside.bounds[1]:
            high.reshape(-1)[outside.channel] = highest
    return spaces.Box(low, high, dtype=box.dtype.type)


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return the bounds that stand for no bounds in a dtype."""
    if dtype.kind == "f":
        return -np.inf, np.inf
    limits = np.iinfo(dtype.name)
    return limits.min, limits.max


def outside_message(rows: Array, box: spaces.Box, key: str) -> str | None:
    """Return a warning if observations lie outside their space, or None.

    Args:
        rows: (N, *shape) observations.
        box: their space.
        key: name of the observations.
    """
    if not _can_be_outside(box):
        return None
    low, high = _widened(box)
    flat = rows.reshape(len(rows), -1)
    outside = (flat < low) | (flat > high)
    if not outside.any():
        return None
    channel = int(outside.any(0).argmax())
    row = int(outside[:, channel].argmax())
    return (
        f"observations of {key!r} lie outside their space {box}: the first is "
        f"{flat[row, channel]:.6g} in channel {channel}, where the bounds are "
        f"{box.low.reshape(-1)[channel]:.6g} and {box.high.reshape(-1)[channel]:.6g}. They are "
        f"stored as they are, and `dreamgym check` counts them. {CONSEQUENCE}"
    )


def _can_be_outside(box: spaces.Box) -> bool:
    """Return whether the bounds are narrower than the dtype; those of images seldom are."""
    lowest, highest = _limits(box.dtype)
    return bool((box.low > lowest).any() or (box.high < highest).any())


def _widened(box: spaces.Box) -> tuple[Array, Array]:
    """Return the bounds, flat and as float64, widened by the tolerance."""
    low, high = (bound.reshape(-1).astype(np.float64) for bound in (box.low, box.high))
    if not np.issubdtype(box.dtype, np.floating):
        return low, high
    size = np.maximum(*(np.where(np.isfinite(bound), abs(bound), 0.0) for bound in (low, high)))
    return low - TOLERANCE * size, high + TOLERANCE * size
