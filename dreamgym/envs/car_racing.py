"""CarRacing-v3 as small images, one action for four frames: drive a car around a track."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym._extras import import_extra

SIDE, FRAME_SKIP = 64, 4


@cache
def _car_class() -> Any:
    """Return Gymnasium's CarRacing as a class that can skip drawing, which is 99% of its step."""
    import_extra("Box2D", "CarRacing")
    from gymnasium.envs.box2d.car_racing import CarRacing as Published

    class Car(Published):
        draws = True

        def _render(self, mode: str) -> Any:
            skipped = mode == "state_pixels" and not self.draws
            return self.state if skipped else super()._render(mode)

    return Car


class CarRacing(gym.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """CarRacing-v3 as 64x64 images; an action is held for four frames.

    An action is `(steering, throttle)` in [-1, 1]: positive throttle is gas, negative is the brake.
    The return is CarRacing's own: 1000 divided over the tiles of the track, less 0.1 a frame; the
    frame in which the car leaves the playfield has -100. An episode terminates there, when all
    tiles have been visited, and at the start line with more than 95% of them visited. It is
    truncated after 1,000 frames. It needs `pip install 'dreamgym[box2d]'`.

    Raises:
        ModuleNotFoundError: Box2D is not installed.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 50 / FRAME_SKIP,
    }

    def __init__(self, render_mode: str | None = None) -> None:
        self._car = _car_class()(render_mode=render_mode)
        self.observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode; the same seed gives the same track."""
        super().reset(seed=seed)
        self._car.draws = True
        frame, info = self._car.reset(seed=seed, options=options)
        return _resized(frame), info

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Hold an action for four frames; the reward is that of all four.

        Raises:
            ValueError: the action is not two finite numbers.
        """
        if np.shape(action) != (2,) or not np.isfinite(action).all():
            raise ValueError(
                f"the action is {action!r}; expected two numbers from -1 to 1, the steering and "
                "the throttle, which is gas above 0 and the brake below"
            )
        steering, throttle = np.clip(action, -1.0, 1.0)
        controls = np.array([steering, max(throttle, 0.0), max(-throttle, 0.0)])
        total, terminated, info = 0.0, False, {}
        for number in range(FRAME_SKIP):
            self._car.draws = number == FRAME_SKIP - 1
            frame, reward, terminated, _, info = self._car.step(controls)
            total += float(reward)
            if terminated:
                break
        if not self._car.draws:  # it ended before the last frame
            self._car.draws = True
            frame = self._car._render("state_pixels")
        return _resized(frame), total, terminated, False, info

    def render(self) -> Any:
        """Return a frame in Gymnasium's size, with `render_mode="rgb_array"`."""
        return None if self.render_mode is None else self._car.render()

    def close(self) -> None:
        """Close Gymnasium's environment."""
        self._car.close()


def _resized(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image (96, 96, 3) as (64, 64, 3): the mean of the area under each pixel."""
    fine = frame.repeat(2, axis=0).repeat(2, axis=1).astype(np.uint16)
    rows = fine[::3] + fine[1::3] + fine[2::3]
    total = rows[:, ::3] + rows[:, 1::3] + rows[:, 2::3]
    return (total / 9).round().astype(np.uint8)
