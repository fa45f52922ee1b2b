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
"""Side of the table in its own pixels, and how near to its edge the finger goes."""
REACH = 40.0
"""Distance from the finger, in pixels, at which an action of 1 puts its target."""
START_DISTANCE = (70.0, 160.0)
"""Range in pixels from which the distance of the finger to the T is drawn."""
PLAY_STEPS, HOLD_STEPS = 25, 5
"""Steps of the play that leads to a goal, and steps for which play holds an action."""
AIM_RADIUS = 30.0
"""Distance in pixels from the T's origin of the points that play aims at."""
GOAL_TOLERANCE = (20.0, np.pi / 9)
"""Distance in pixels and angle in radians below which a goal is reached (arXiv 2411.04983)."""
MIN_PUSH = (40.0, np.pi / 6)
"""Distance and angle to which a goal's T has moved from its start, at least one of them."""


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
    2303.04137), without its fixed goal. How far away a goal is, and when it is reached, follow
    DINO-WM (arXiv 2411.04983). An observation is an image (64, 64, 3) of bytes. An action (2,) puts
    the finger's target at most 40 of the table's 512 pixels from the finger along each axis, for a
    tenth of a second; numbers outside [-1, 1] are clipped.

    Each episode draws a T in the middle of the table, and the finger 70 to 160 pixels from it. (The
    physics then turns the T about its centre of mass, which is not its origin: from the origin
    that `pose` tells, the finger is 37 to 230 pixels away.) `Play` pushes for 25 steps; where it
    ends is the goal, if the T has moved by 40 pixels or 30 degrees, else another start and another
    play are drawn. A T that is pushed against the edge can leave the table.

    The info of `reset` shows the goal as `goal_observation`, the image to be reached; that of every
    step has `pose` (5,), the positions of the finger and of the T's origin in pixels and the T's
    angle in radians, which is not wrapped, and `is_success`: the distance to the goal over the four
    coordinates of the positions is below 20 pixels, and the angle below 20 degrees. There is no
    reward. The goal is not part of the observation, so that reaching it truncates the episode and
    does not terminate it. It needs `pip install 'dreamgym[pusht]'`.

    Raises:
        ModuleNotFoundError: gym-pusht is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self._table = _table_class()(obs_type="state")
        self.observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.render_mode = render_mode
        self._goal: NDArray[np.float64] | None = None

    @property
    def pose(self) -> NDArray[np.float64]:
        """Positions of the finger and of the T's origin (x, y, x, y), and the angle of the T.

        Raises:
            ResetNeeded: no episode has been started.
        """
        if not hasattr(self._table, "agent"):
            raise gym.error.ResetNeeded("call reset first: before it nothing is on the table")
        finger, block = self._table.agent, self._table.block
        return np.array([*finger.position, *block.position, block.angle])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode, and return its first image and info; there are no options."""
        super().reset(seed=seed)
        play = Play(self)
        while True:
            start = self._draw_start()
            began = self._put(start)
            play.begin(self.np_random)
            for _ in range(PLAY_STEPS):
                self._move(play.action())
            goal, goal_observation = self.pose, self._frame(SIDE)
            if not _is_within(goal[2:], began[2:], MIN_PUSH):
                break
        self._goal = goal
        self._put(start)
        return self._frame(SIDE), {**self._info(goal), "goal_observation": goal_observation}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the finger; return the image, a reward of zero, and whether the goal is reached.

        Raises:
            ResetNeeded: no episode has been started.
            ValueError: the action is not two finite numbers.
        """
        if self._goal is None:
            raise gym.error.ResetNeeded("call reset before step")
        if np.shape(action) != (2,) or not np.isfinite(action).all():
            raise ValueError(f"the action is {action!r}; expected two numbers from -1 to 1")
        self._move(action)
        info = self._info(self._goal)
        return self._frame(SIDE), 0.0, False, info["is_success"], info

    def render(self) -> NDArray[np.uint8] | None:
        """Return an image (256, 256, 3), with `render_mode="rgb_array"`."""
        return self._frame(RENDERED_SIDE) if self.render_mode == "rgb_array" else None

    def _draw_start(self) -> NDArray[np.float64]:
        """Return a pose whose finger is on the table, beside the T."""
        while True:
            place = self.np_random.uniform(TABLE / 4, 3 * TABLE / 4, 2)
            finger = place + self.np_random.uniform(*START_DISTANCE) * _direction(self.np_random)
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

    def _info(self, goal: NDArray[np.float64]) -> dict[str, Any]:
        pose = self.pose
        success = _is_within(pose, goal, GOAL_TOLERANCE)
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
        if self._steps % HOLD_STEPS == 0:
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
            aim = pose[2:4] + AIM_RADIUS * direction - pose[:2]
            direction = aim / max(float(np.linalg.norm(aim)), 1e-6)
        return size * direction


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a direction (2,) of length 1."""
    angle = rng.uniform(-np.pi, np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _is_within(pose: NDArray[Any], goal: NDArray[Any], limits: tuple[float, float]) -> bool:
    """Return whether the positions and the angle are within a distance and an angle of a goal's."""
    turn = (pose[-1] - goal[-1] + np.pi) % (2 * np.pi) - np.pi
    return bool(np.linalg.norm(pose[:-1] - goal[:-1]) < limits[0] and abs(turn) < limits[1])
