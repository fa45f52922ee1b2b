"""DreamEnv: one dream as a Gymnasium environment, in NumPy."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np

from dreamgym.dream.options import parse_options
from dreamgym.dream.vector_env import SEED_RANGE, DreamVectorEnv
from dreamgym.world.world import World


class DreamEnv(gym.Env):
    """One dream of a world; observations, actions and rewards are NumPy and Python scalars.

    Args:
        world: a world, its folder, or the name of one that ships.
        **options: see `DreamOptions`; `output` and `autoreset_mode` are a vector environment's.

    Raises:
        TypeError: an unknown option; the message has the nearest right one.
        ValueError: an option's value that is not allowed, or that this world cannot give.
        WorldError: the world cannot be loaded.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, world: World | str | None = None, **options: Any) -> None:
        parse_options(options)
        # A single environment always gives NumPy and never resets itself: both keywords are
        # accepted, so that one set of keywords does for `make` and `make_vec`.
        # It waits for the device in every step anyway: so it looks at actions everywhere.
        fixed = {"output": "numpy", "autoreset_mode": "Disabled", "debug": True}
        self.dreams = DreamVectorEnv(world, 1, **{**options, **fixed})
        self.world, self.view, self.horizon = (
            self.dreams.world,
            self.dreams.view,
            self.dreams.horizon,
        )
        self.observation_space = self.dreams.single_observation_space
        self.action_space = self.dreams.single_action_space
        self.render_mode = self.dreams.render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode.

        Args:
            seed: the same seed and actions give the same episodes, bit for bit.
            options: none are known; given for Gymnasium's sake.

        Returns:
            The observation and an empty info.
        """
        super().reset(seed=seed)
        observation, _ = self.dreams.reset(seed=int(self.np_random.integers(SEED_RANGE)))
        return _first(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; `info` holds the model's `uncertainty`.

        Raises:
            RuntimeError: the environment was not reset, the episode has ended, or it is closed.
            ValueError: an action outside the space.
        """
        batch = np.asarray(action)[np.newaxis]
        observation, reward, terminated, truncated, info = self.dreams.step(batch)
        return (
            _first(observation),
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            {"uncertainty": float(info["uncertainty"][0])},
        )

    def render(self) -> Any:
        """The frame (height, width, 3) uint8 of where the dream stands, or None."""
        frames = self.dreams.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Let go of the dream."""
        self.dreams.close()


def _first(observation: Any) -> Any:
    """The only row of a batch of one."""
    if isinstance(observation, dict):
        return {key: part[0] for key, part in observation.items()}
    return observation[0]


def make_single(world: World | str | None = None, **options: Any) -> DreamEnv:
    """What the registered ids make: a `DreamEnv` whose horizon is what `gym.make` was asked for.

    `gym.make` keeps `max_episode_steps` for a TimeLimit of its own and tells the environment
    nothing. A dream that is asked to be longer than its world recommends would still end at the
    recommendation: so the argument is read where it is, in the caller.
    """
    caller = sys._getframe(1)
    if "max_episode_steps" not in options and caller.f_code is gym.make.__code__:
        asked = caller.f_locals.get("max_episode_steps")
        if asked is None:  # made again from a spec, which kept what was asked for
            asked = getattr(caller.f_locals.get("env_spec"), "max_episode_steps", None)
        if asked is not None:
            # -1 is Gymnasium's word for "no limit".
            options["max_episode_steps"] = sys.maxsize if asked == -1 else asked
    return DreamEnv(world, **options)


make_single.metadata = DreamEnv.metadata  # type: ignore[attr-defined]
