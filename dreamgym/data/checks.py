"""What must hold of the values of an episode, wherever it comes from.

Each function raises a `DatasetError` that names key and row; its callers add path and episode.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data.errors import DatasetError

Array = NDArray[Any]


def cast_rows(values: Any, dtype: np.dtype[Any], key: str) -> Array:
    """`values` in `dtype`, refused where that would change what they say.

    Floats may lose digits, never range; whole numbers must stay themselves; floats never become
    whole numbers.

    Args:
        values: `(N, ...)` rows.
        dtype: The dtype they are stored in.
        key: For the message.
    """
    values = np.asarray(values)
    if values.dtype == dtype:
        return values
    numbers = values.dtype.kind in "biuf"
    if not numbers or (values.dtype.kind == "f" and dtype.kind != "f"):
        raise DatasetError(
            f"its dtype is {values.dtype}; {dtype} is wanted",
            key=key,
            remedy="make the environment or the file give what its space declares",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    bad = (np.isinf(cast) & np.isfinite(values)) if dtype.kind == "f" else cast != values
    if bad.any():
        row = first_row(bad)
        worst = values[row].flat[np.flatnonzero(bad[row])[0]]
        raise DatasetError(f"{worst} does not fit in {dtype}", key=key, row=row)
    return cast


def require_finite(values: Array, key: str) -> None:
    """Raise at the first row that holds NaN or an infinity."""
    if values.dtype.kind != "f":
        return
    finite = np.isfinite(values)
    if not finite.all():
        row = first_row(~finite)
        count = int((~finite).reshape(len(values), -1).any(axis=1).sum())
        kind = "NaN" if np.isnan(values[row]).any() else "an infinity"
        more = f" ({count} such rows)" if count > 1 else ""
        raise DatasetError(
            f"it holds {kind}{more}", key=key, row=row, remedy="leave the episode out, or mend it"
        )


def action_excess(values: Array, space: gym.Space[Any]) -> Array:
    """How far each action lies outside its space: `(N,)`, zero inside."""
    flat = values.reshape(len(values), -1)
    if isinstance(space, spaces.Box):
        low, high = space.low.reshape(-1), space.high.reshape(-1)
    elif isinstance(space, spaces.Discrete):
        low, high = np.array([space.start]), np.array([space.start + space.n - 1])
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start.reshape(-1), (space.start + space.nvec - 1).reshape(-1)
    else:
        raise DatasetError(f"{space} is no action space that dreamgym supports")
    if flat.dtype.kind == "f":
        wide = flat.astype(np.float64)
        over, under = wide - high.astype(np.float64), low.astype(np.float64) - wide
        return np.asarray(np.maximum(np.maximum(over, under), 0.0).max(axis=1))
    outside = (flat < low) | (flat > high)
    if not outside.any():
        return np.zeros(len(flat))
    wide = flat.astype(np.float64)  # only to say by how much
    return np.asarray(
        np.where(outside, np.maximum(np.maximum(wide - high, low - wide), 1), 0).max(axis=1)
    )


def require_actions_inside(values: Array, space: gym.Space[Any], key: str) -> None:
    """Raise where an action lies outside its space: how many do, and how far the worst."""
    excess = action_excess(values, space)
    outside = excess > 0
    if outside.any():
        row = int(excess.argmax())
        raise DatasetError(
            f"{int(outside.sum())} of {len(values)} actions lie outside {space}, the worst "
            f"({values[row]}) by {excess[row]:.6g}",
            key=key,
            row=row,
            remedy="clip the actions where they are chosen; dreamgym never clips silently",
        )


def first_row(bad: Array) -> int:
    """The first row with a True in it."""
    return int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
