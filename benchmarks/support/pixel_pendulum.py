"""Pendulum from 64x64 pixels: the last three frames in grey are the three channels of an image.

One frame does not show how fast the rod turns; three do, and the field stacks frames for that.
The true state is recorded beside the image, to be probed for, and no model sees it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

SIDE = 64
FRAMES = 3
ENV_ID = "PixelPendulum-v0"


class PixelPendulum(gym.Env):
    """Pendulum-v1, whose observation is a dict of `image` (64, 64, 3) bytes and `state` (3,)."""

    def __init__(self) -> None:
        self._env = gym.make("Pendulum-v1", render_mode="rgb_array", disable_env_checker=True)
        # Drawn at twice the size, of which the middle holds the whole rod.
        self._env.unwrapped.screen_dim = 2 * SIDE
        self.observation_space = gym.spaces.Dict(
            image=gym.spaces.Box(0, 255, (SIDE, SIDE, FRAMES), np.uint8),
            state=self._env.observation_space,
        )
        self.action_space = self._env.action_space
        self._frames: list[NDArray[np.uint8]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode; the first frame is repeated."""
        super().reset(seed=seed)
        state, info = self._env.reset(seed=seed, options=options)
        self._frames = [self._frame()] * FRAMES
        return self._seen(state), info

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Take one step of Pendulum-v1."""
        state, reward, terminated, truncated, info = self._env.step(action)
        self._frames = [*self._frames[1:], self._frame()]
        return self._seen(state), float(reward), terminated, truncated, info

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _frame(self) -> NDArray[np.uint8]:
        # The torque's arrow would show the action, which is for the model to know by itself.
        self._env.unwrapped.last_u = None
        middle = slice(SIDE // 2, SIDE // 2 + SIDE)
        return self._env.render()[middle, middle].mean(-1).round().astype(np.uint8)

    def _seen(self, state: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return {"image": np.stack(self._frames, -1), "state": state}


gym.register(ENV_ID, f"{__name__}:PixelPendulum", max_episode_steps=200)
