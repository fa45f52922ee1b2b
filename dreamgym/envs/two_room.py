"""Two rooms with a door, seen from above: a task of reaching places that an image shows."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

SIDE = 64
DOOR = (0.5, 0.8)
"""The door in the wall at x = 0, from y to y."""
SPEED = 0.1
REACHED = 0.15
"""Distance to the goal at which it is reached."""

RADIUS, WALL = 0.09, 0.03
DOT_COLOUR, WALL_COLOUR = (255.0, 60.0, 40.0), 160
_CENTRES = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1


class TwoRoom(gym.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """A dot in a square from -1 to 1, which a wall with a door cuts in two; seen as an image.

    A task after the Two-Room of PLDM (arXiv 2502.14819) and LeWM (arXiv 2603.19312), with
    measures of its own. An observation is an image (64, 64, 3) of bytes; an action moves the dot by
    at most 0.1 along each axis, and along the wall where it cannot pass.

    Each episode draws a start and a goal independently, anywhere in both rooms. The info of
    `reset` shows the goal as `goal_observation`, the image to be reached; that of every step
    has `is_success`, whether the dot is within 0.15 of the goal, and the dot's `place` (2,).
    There is no reward. The goal is not part of the observation, so that reaching it truncates the
    episode and does not terminate it: nothing that is seen ends there.

    `reset(options={"start": (x, y), "goal": (x, y)})` chooses either place; a ValueError says so
    where it is not two numbers from -1 to 1.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.render_mode = render_mode
        self._place = self._goal = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        drawn = self.np_random.uniform(-1, 1, (2, 2))
        chosen = options or {}
        self._place, self._goal = (
            _inside(key, chosen[key]) if key in chosen else place
            for key, place in zip(("start", "goal"), drawn, strict=True)
        )
        return picture(self._place), {**self._info(), "goal_observation": picture(self._goal)}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the dot."""
        old = self._place
        new = np.clip(old + SPEED * np.clip(action, -1, 1), -1, 1)
        if (new[0] > 0) != (old[0] > 0):
            share = old[0] / (old[0] - new[0])
            if not DOOR[0] < old[1] + share * (new[1] - old[1]) < DOOR[1]:
                new[0] = old[0]
        self._place = new
        info = self._info()
        return picture(new), 0.0, False, info["is_success"], info

    def render(self) -> NDArray[np.uint8] | None:
        """Return the image, with `render_mode="rgb_array"`."""
        return picture(self._place) if self.render_mode == "rgb_array" else None

    def _info(self) -> dict[str, Any]:
        distance = float(np.linalg.norm(self._place - self._goal))
        return {"is_success": distance < REACHED, "place": self._place.astype(np.float32)}


def _inside(key: str, place: Any) -> NDArray[np.float64]:
    """Return a place (2,) that a user chose."""
    try:
        found = np.asarray(place, np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (2,) or not (np.abs(found) <= 1).all():
        raise ValueError(f"{key} is {place!r}; expected two numbers from -1 to 1")
    return found


def picture(place: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the rooms with a dot at a place (2,), as an image (64, 64, 3); y points down.

    The dot's edge is one pixel wide, so that the image shows places between pixels.
    """
    image, (x, y) = _ROOMS.copy(), np.asarray(place, np.float64)
    columns, rows = _near(x), _near(y)
    distance = np.hypot(_CENTRES[columns] - x, _CENTRES[rows, None] - y)
    dot = np.clip((RADIUS - distance) * SIDE / 2 + 0.5, 0, 1)[..., None]
    behind = image[rows, columns]
    image[rows, columns] = ((1 - dot) * behind + dot * np.array(DOT_COLOUR) + 0.5).astype(np.uint8)
    return image


def _near(middle: float) -> slice:
    """Return the pixels that a dot may touch along one axis."""
    first, last = ((middle + offset + 1) * SIDE / 2 for offset in (-RADIUS, RADIUS))
    return slice(max(0, int(first) - 1), int(last) + 2)


def _rooms() -> NDArray[np.uint8]:
    """Return the image of the rooms without the dot."""
    low, high = DOOR
    closed = (low >= _CENTRES) | (high <= _CENTRES)
    wall = (np.abs(_CENTRES) < WALL) & closed[:, None]
    return np.where(wall[..., None], WALL_COLOUR, np.zeros(3)).astype(np.uint8)


_ROOMS = _rooms()
