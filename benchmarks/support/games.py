"""Games as small images: three of MinAtar, and Pong of the Arcade Learning Environment.

MinAtar (Young & Tian 2019, arXiv 1903.03176) has games on 10 by 10 cells; a cell is a pixel here,
coloured by what lies in it, and a border makes the image 16 by 16. Where things move to is seen in
the trails that the games draw. One frame of Pong does not show where the ball flies, so its image
has the last three frames in grey as its channels.

It needs `pip install minatar ale-py`; both packages are under the GPL, and nothing here is copied
from them. Importing this module registers `PixelBreakout-v0`, `PixelAsterix-v0`,
`PixelFreeway-v0` and `PixelPong-v0`; the packages are imported when one is made.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

CELLS, BORDER = 10, 3
CELL_SIDE = CELLS + 2 * BORDER
BORDER_GREY = 64
COLOURS = np.array(
    [
        (255, 255, 255),
        (255, 220, 0),
        (255, 0, 0),
        (0, 90, 255),
        (0, 255, 0),
        (255, 0, 255),
        (0, 255, 255),
    ],
    np.uint8,
)
"""Colours of the channels of a MinAtar game, in their order; a lower one is drawn over a higher."""

PONG_SIDE, PONG_FRAMES = 32, 3
FIELD = slice(34, 194)
"""Rows of Pong's screen that show the field, 160 by 160 pixels."""
PONG_MOVES = (0, 2, 3)
"""Actions of Pong: stay, and move either way; the others only repeat these."""

Step = tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]


class CellGame(gym.Env):
    """A game of MinAtar as images (16, 16, 3) of bytes.

    Args:
        game: its name there, such as "Breakout".
    """

    def __init__(self, game: str) -> None:
        import minatar.gym

        if f"MinAtar/{game}-v1" not in gym.registry:
            minatar.gym.register_envs()
        self._env = gym.make(f"MinAtar/{game}-v1", disable_env_checker=True)
        self.observation_space = gym.spaces.Box(0, 255, (CELL_SIDE, CELL_SIDE, 3), np.uint8)
        self.action_space = self._env.action_space
        self._frame = np.full((CELL_SIDE, CELL_SIDE, 3), BORDER_GREY, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode; the same seed gives the same game."""
        super().reset(seed=seed)
        cells, info = self._env.reset(seed=seed, options=options)
        if seed is not None:  # The game draws its start before it takes the seed.
            cells, info = self._env.reset()
        return self._image(cells), info

    def step(self, action: Any) -> Step:
        """Take one step of the game."""
        cells, reward, terminated, truncated, info = self._env.step(int(action))
        return self._image(cells), float(reward), terminated, truncated, info

    def close(self) -> None:
        """Close the game."""
        self._env.close()

    def _image(self, cells: NDArray[np.bool_]) -> NDArray[np.uint8]:
        image = self._frame.copy()
        middle = image[BORDER:-BORDER, BORDER:-BORDER]
        middle[:] = 0
        for channel in reversed(range(cells.shape[-1])):
            middle[cells[..., channel]] = COLOURS[channel]
        return image


class SmallPong(gym.Env):
    """Pong, four frames a step, as images (32, 32, 3): the last three in grey are the channels.

    A pixel is the brightest of 5 by 5 on the screen, so that the ball does not fade. An action is
    repeated with a chance of 1 in 4, as in the environment's own version 5.
    """

    def __init__(self) -> None:
        import ale_py

        if "ALE/Pong-v5" not in gym.registry:
            gym.register_envs(ale_py)
        self._env = gym.make("ALE/Pong-v5", obs_type="grayscale", disable_env_checker=True)
        shape = (PONG_SIDE, PONG_SIDE, PONG_FRAMES)
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gym.spaces.Discrete(len(PONG_MOVES))
        self._frames: list[NDArray[np.uint8]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start a game; the first frame is repeated."""
        super().reset(seed=seed)
        screen, info = self._env.reset(seed=seed, options=options)
        self._frames = [_shrunk(screen)] * PONG_FRAMES
        return np.stack(self._frames, -1), info

    def step(self, action: Any) -> Step:
        """Take an action for four frames."""
        move = PONG_MOVES[int(action)]
        screen, reward, terminated, truncated, info = self._env.step(move)
        self._frames = [*self._frames[1:], _shrunk(screen)]
        return np.stack(self._frames, -1), float(reward), terminated, truncated, info

    def close(self) -> None:
        """Close the game."""
        self._env.close()


def _shrunk(screen: NDArray[np.uint8]) -> NDArray[np.uint8]:
    blocks = screen[FIELD].reshape(PONG_SIDE, 5, PONG_SIDE, 5)
    return blocks.max((1, 3))


MAX_STEPS = {"Breakout": 1000, "Asterix": 1000, "Freeway": 500}
"""Time limits: Freeway's own is 2,500 steps, the others have none."""

for _game, _limit in MAX_STEPS.items():
    gym.register(
        f"Pixel{_game}-v0",
        f"{__name__}:CellGame",
        max_episode_steps=_limit,
        kwargs={"game": _game},
    )
# The emulator truncates a game after half an hour of its frames by itself; it is a limit for those
# who ask the spec.
gym.register("PixelPong-v0", f"{__name__}:SmallPong", max_episode_steps=27_000)
