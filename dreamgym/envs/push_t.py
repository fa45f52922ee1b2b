"""A finger pushes a T on a table, seen from above: a task of reaching what an image shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym._extras import import_extra

SIDE, RENDERED_SIDE = 64, 256
TABLE, MARGIN = 512, 30
"""Side of the table in pixels of the published environment, and how near the finger gets to it."""
REACH = 40.0
"""How far an action of 1 puts the finger's target from the finger."""
NEAR = (70.0, 160.0)
"""Distance from the T at which the finger starts, from and to."""
PLAY, HELD = 25, 5
"""Steps of the play that draws a goal, and for how many of them an action is held."""
REACHED = (20.0, np.pi / 9)
"""Distance, and angle in radians, below which a goal is reached (arXiv 2411.04983)."""
PUSHED = (40.0, np.pi / 6)
"""Distance and angle of which a goal's T is at least one away from where it starts."""


@cache
def _table_class() -> Any:
    """Return the published environment as a class that draws no goal and measures no overlap."""
    import_extra("gym_pusht", "Push-T")
    import pygame
    from gym_pusht.envs.pusht import DrawOptions, PushTEnv

    class Table(PushTEnv):
        def _draw(self) -> Any:
            screen = pygame.Surface((TABLE, TABLE))
            screen.fill((255, 255, 255))
            self.space.debug_draw(DrawOptions(screen))
            return screen

        def _get_coverage(self) -> float:
            return 0.0

    return Table


class PushT(gym.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """A finger pushes a T; each episode's goal is an image that play has led to from its start.

    The table and its physics are those of gym-pusht, the task of Diffusion Policy (arXiv
    2303.04137), without its fixed goal; goals, times and measures follow DINO-WM (arXiv
    2411.04983). An observation is an image (64, 64, 3) of bytes. An action puts the finger's target
    at most 40 of the table's 512 pixels from the finger along each axis, for a tenth of a second.

    Each episode draws the T anywhere in the middle of the table, and the finger 70 to 160 pixels
    from it. `Play` then pushes for 25 steps; where it ends is the goal, if the T has moved by 40
    pixels or 30 degrees, else other starts and plays are drawn. The info of `reset` shows the goal
    as `goal_observation`, the image to be reached; that of every step has `pose` (5,), the places
    of finger and T in pixels and the turn of the T in radians, and `is_success`: the four
    numbers of the places are within 20 pixels of the goal's, in all, and the turn within 20
    degrees. There is no reward. The goal is not part of the observation, so that reaching it
    truncates the episode and does not terminate it. It needs `pip install 'dreamgym[pusht]'`.

    Raises:
        ModuleNotFoundError: gym-pusht is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self._table = _table_class()(obs_type="state")
        self.observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.render_mode = render_mode

    @property
    def pose(self) -> NDArray[np.float64]:
        """Places of the finger and of the T (x, y, x, y), and the turn of the T."""
        finger, block = self._table.agent, self._table.block
        return np.array([*finger.position, *block.position, block.angle])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        play = Play(self)
        while True:
            start = self._draw_start()
            began = self._put(start)
            play.begin(self.np_random)
            for _ in range(PLAY):
                self._move(play.action())
            self._goal, goal_observation = self.pose, self._frame(SIDE)
            if not _is_within(self._goal[2:], began[2:], PUSHED):
                break
        self._put(start)
        return self._frame(SIDE), {**self._info(), "goal_observation": goal_observation}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the finger.

        Raises:
            ValueError: the action is not two finite numbers.
        """
        if np.shape(action) != (2,) or not np.isfinite(action).all():
            raise ValueError(f"the action is {action!r}; expected two numbers from -1 to 1")
        self._move(action)
        info = self._info()
        return self._frame(SIDE), 0.0, False, info["is_success"], info

    def render(self) -> NDArray[np.uint8] | None:
        """Return an image (256, 256, 3), with `render_mode="rgb_array"`."""
        return None if self.render_mode is None else self._frame(RENDERED_SIDE)

    def _draw_start(self) -> NDArray[np.float64]:
        """Return a pose whose finger is on the table, beside the T."""
        while True:
            place = self.np_random.uniform(TABLE / 4, 3 * TABLE / 4, 2)
            finger = place + self.np_random.uniform(*NEAR) * _direction(self.np_random)
            if ((finger > MARGIN) & (finger < TABLE - MARGIN)).all():
                return np.array([*finger, *place, self.np_random.uniform(-np.pi, np.pi)])

    def _put(self, pose: NDArray[np.float64]) -> NDArray[np.float64]:
        """Put finger and T into a pose, and return theirs.

        It is not quite that pose: the published environment turns the T about its centre of mass.
        """
        self._table.reset(options={"reset_to_state": pose})
        self._move(np.zeros(2))  # parts that overlap come apart
        return self.pose

    def _move(self, action: NDArray[Any]) -> None:
        finger = np.array(self._table.agent.position)
        target = finger + REACH * np.clip(action, -1, 1)
        self._table.step(np.clip(target, MARGIN, TABLE - MARGIN))

    def _info(self) -> dict[str, Any]:
        pose = self.pose
        success = _is_within(pose, self._goal, REACHED)
        return {"is_success": success, "pose": pose.astype(np.float32)}

    def _frame(self, side: int) -> NDArray[np.uint8]:
        """Return the table as an image (side, side, 3): the mean of the area under each pixel."""
        import cv2
        import pygame

        pixels = pygame.surfarray.array3d(self._table._draw()).swapaxes(0, 1)
        return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


class Play:
    """A recording policy for `PushT`: pushes at random, towards the T in seven of ten.

    An action is held for five steps.

    Args:
        env: the environment, which it asks for poses.
    """

    name = "play"

    def __init__(self, env: PushT) -> None:
        self._env = env

    def begin(self, rng: np.random.Generator) -> None:
        """Begin an episode whose actions come from `rng`."""
        self._rng, self._steps = rng, 0

    def action(self) -> NDArray[np.float64]:
        """Return the next action (2,)."""
        if self._steps % HELD == 0:
            self._held = self._draw()
        self._steps += 1
        return self._held

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Begin a recorded episode; there is one row, the environment's."""
        (seed,) = seeds
        self.begin(np.random.default_rng([seed, 3]))

    def act(self, observations: Any, rows: Sequence[int]) -> list[NDArray[np.float32]]:
        """Return the next action of a recorded episode."""
        return [self.action().astype(np.float32)]

    def _draw(self) -> NDArray[np.float64]:
        direction, size = _direction(self._rng), self._rng.uniform(0.2, 1)
        if self._rng.random() < 0.7:
            pose = self._env.pose
            aim = pose[2:4] + MARGIN * direction - pose[:2]
            direction = aim / max(float(np.linalg.norm(aim)), 1e-6)
        return size * direction


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a direction (2,) of length 1."""
    angle = rng.uniform(-np.pi, np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _is_within(pose: NDArray[Any], goal: NDArray[Any], limits: tuple[float, float]) -> bool:
    """Return whether the places and the turn are within a distance and an angle of a goal's."""
    turn = (pose[-1] - goal[-1] + np.pi) % (2 * np.pi) - np.pi
    return bool(np.linalg.norm(pose[:-1] - goal[:-1]) < limits[0] and abs(turn) < limits[1])
