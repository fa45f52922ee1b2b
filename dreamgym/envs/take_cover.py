"""VizDoom's Take Cover as images: survive fireballs by moving left and right."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym._extras import import_extra

SIDE, FRAME_SKIP = 64, 4


class TakeCover(gym.Env[NDArray[np.uint8], Any]):
    """Take Cover as 64x64 images, four tics a step; the return is the number of tics survived.

    The game of "World Models" (Ha and Schmidhuber 2018, arXiv 1803.10122), at most 2,100 tics long.
    It needs `pip install 'dreamgym[doom]'`.

    After the last tic VizDoom has no frame and returns black. The last frame is returned again
    instead: a black frame would give the termination away, and no dream could imagine another.

    Raises:
        ModuleNotFoundError: VizDoom is not installed.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 35 / FRAME_SKIP,
    }

    def __init__(self, render_mode: str | None = None) -> None:
        import_extra("vizdoom.gymnasium_wrapper", "Take Cover")  # registers the ids
        self._doom = gym.make(
            "VizdoomTakeCover-v1",
            frame_skip=FRAME_SKIP,
            screen_resolution="RES_256X192",
            disable_env_checker=True,
        )
        self._last = np.zeros((SIDE, SIDE, 3), np.uint8)
        self.observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.action_space = self._doom.action_space
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode; the same seed gives the same game."""
        super().reset(seed=seed)
        observation, info = self._doom.reset(seed=seed, options=options)
        return self._resized(observation), info

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Take an action for four tics; the episode terminates when the agent dies."""
        observation, reward, terminated, truncated, info = self._doom.step(action)
        frame = self._last.copy() if terminated else self._resized(observation)
        return frame, float(reward), terminated, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """Return the last image, with `render_mode="rgb_array"`."""
        return self._last.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the game."""
        self._doom.close()

    def _resized(self, observation: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
        screen = observation["screen"].astype(np.uint16)
        rows = screen[::3] + screen[1::3] + screen[2::3]
        total = rows[:, ::4] + rows[:, 1::4] + rows[:, 2::4] + rows[:, 3::4]
        self._last = (total / 12).round().astype(np.uint8)
        return self._last.copy()
