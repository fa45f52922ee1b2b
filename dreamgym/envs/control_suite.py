"""Tasks of the DeepMind Control Suite as small images, one action for several steps."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym._extras import import_extra

SIDE, RENDERED_SIDE = 64, 256


class ControlSuite(gym.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """A task of the Control Suite (arXiv 1801.00690) as 64x64 images; an action is held.

    The images are of the suite's first camera, as PlaNet (arXiv 1811.04551) has them. The reward is
    the sum over the steps that an action is held, each from 0 to 1. Episodes are truncated after
    1,000 steps of the task, so that a return is at most 1,000, and never terminate. It needs
    `pip install 'dreamgym[dmc]'`, and OpenGL without a screen: set `MUJOCO_GL=egl`, or `osmesa`.

    `gym.make` of a registered id has the time limit of its own frame skip; with another, give
    `max_episode_steps=1000 // frame_skip`, too.

    Args:
        domain: the suite's name of the body, such as "cartpole".
        task: the suite's name of what it does, such as "swingup".
        frame_skip: steps of the task for which an action is held, at least 1.

    Raises:
        ModuleNotFoundError: dm_control is not installed.
        ValueError: the suite has no such task, or `frame_skip` is below 1.
        RuntimeError: no OpenGL that can draw, here or on reset.
        ClosedEnvironmentError: a reset, a step or a frame after `close`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 12.5}  # noqa: RUF012

    def __init__(
        self, domain: str, task: str, frame_skip: int, render_mode: str | None = None
    ) -> None:
        try:
            suite = import_extra("dm_control.suite", "the Control Suite")
        except AttributeError as error:  # PyOpenGL's, where MUJOCO_GL names a missing library
            raise _no_opengl(error) from error
        # Those of lqr terminate, have negative rewards, and are not the same for the same seed.
        tasks = [each for each in suite.ALL_TASKS if each[0] != "lqr"]
        if (domain, task) not in tasks:
            known = ", ".join(" ".join(each) for each in tasks)
            raise ValueError(f"the suite has no {domain} {task} with images; it has {known}")
        if frame_skip < 1:
            raise ValueError(f"frame_skip={frame_skip}: expected a number of at least 1")
        self._loaded: Any = suite.load(domain, task)
        spec = self._env.action_spec()
        low, high = (np.full(spec.shape, each, "f4") for each in (spec.minimum, spec.maximum))
        self.observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.action_space = self._actions = gym.spaces.Box(low, high, dtype=np.float32)
        self.frame_skip, self.render_mode = frame_skip, render_mode
        seconds = frame_skip * self._env.control_timestep()
        self.metadata = {**self.metadata, "render_fps": 1 / seconds}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode; the same seed gives the same first state."""
        super().reset(seed=seed)
        if seed is not None:
            self._env.task._random = np.random.RandomState(seed)
        self._env.reset()
        return self._frame(SIDE), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Hold an action for `frame_skip` steps; the reward is that of all of them.

        Raises:
            ValueError: the action has another shape, or a number that is not finite.
        """
        space = self._actions
        if np.shape(action) != space.shape or not np.isfinite(action).all():
            raise ValueError(f"the action is {action!r}; expected finite numbers of {space}")
        held, total = np.clip(action, space.low, space.high), 0.0
        for _ in range(self.frame_skip):
            step = self._env.step(held)
            total += float(step.reward)
            if step.last():
                break
        return self._frame(SIDE), total, False, step.last(), {}

    def render(self) -> Any:
        """Return a frame (256, 256, 3), with `render_mode="rgb_array"`."""
        return None if self.render_mode is None else self._frame(RENDERED_SIDE)

    def close(self) -> None:
        """Free the task's OpenGL context."""
        if self._loaded is not None:
            self._loaded.physics.free()
            self._loaded.close()
        self._loaded = None

    @property
    def _env(self) -> Any:
        if self._loaded is None:
            raise gym.error.ClosedEnvironmentError("the environment is closed; make another")
        return self._loaded

    def _frame(self, side: int) -> NDArray[np.uint8]:
        physics = self._env.physics
        try:
            frame = physics.render(side, side, camera_id=0)
        except Exception as error:  # MuJoCo's, PyOpenGL's or glfw's, by the machine
            raise _no_opengl(error) from error
        return np.ascontiguousarray(frame)


def _no_opengl(error: Exception) -> RuntimeError:
    return RuntimeError(
        f"MuJoCo found no OpenGL to draw with ({error}); without a screen, set the environment "
        "variable MUJOCO_GL to egl (Debian's package libegl1) or osmesa (libosmesa6) before "
        "Python starts"
    )
