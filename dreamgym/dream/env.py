"""DreamEnv: one dream as a Gymnasium environment, in NumPy."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from dreamgym.data.layout import index_rows
from dreamgym.dream.options import parse_options
from dreamgym.dream.vector_env import SEED_RANGE, DreamVectorEnv, with_horizon
from dreamgym.world.world import World


class DreamEnv(gym.Env):
    """One dream of a world; observations are NumPy arrays, rewards and flags Python scalars.

    Args:
        world: world, its folder, or the name of one that ships.
        **options: see `DreamOptions`; `output` and `debug` have no effect.

    Raises:
        TypeError: unknown option; the message names the nearest known one.
        ValueError: value that is not allowed, or that this world does not support; among these an
            `autoreset_mode` other than "NextStep", since it is Gymnasium's `SyncVectorEnv` or
            `AsyncVectorEnv` that resets single environments.
        WorldError: the world cannot be loaded.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, world: World | str | None = None, **options: Any) -> None:
        if parse_options(options).autoreset_mode != "NextStep":
            raise ValueError(
                f"autoreset_mode={options['autoreset_mode']!r}: a single dream does not reset "
                "itself. With vectorization_mode='sync' or 'async' pass "
                f"vector_kwargs={{'autoreset_mode': {options['autoreset_mode']!r}}}; without a "
                "vectorization_mode, make_vec makes one DreamVectorEnv, which takes the mode"
            )
        # Overridden and not refused, so that the same keywords work for `make` and `make_vec`.
        # Each step copies its results to the host anyway, so checks cost nothing on any device.
        fixed = {"output": "numpy", "autoreset_mode": "Disabled", "debug": True}
        self._spec: EnvSpec | None = None
        self.dreams = DreamVectorEnv(world, 1, **{**options, **fixed})
        self.world = self.dreams.world
        self.view = self.dreams.view
        self.horizon = self.dreams.horizon
        self.observation_space = self.dreams.single_observation_space
        self.action_space = self.dreams.single_action_space
        self.render_mode = self.dreams.render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start a new episode.

        Args:
            seed: the same seed and actions give the same episodes, bit for bit.
            options: ignored; there are none.

        Returns:
            The observation and an empty info.
        """
        super().reset(seed=seed)
        observation, _ = self.dreams.reset(seed=int(self.np_random.integers(SEED_RANGE)))
        return index_rows(observation, 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step; `info` holds the model's `uncertainty`.

        Raises:
            RuntimeError: the environment was not reset, the episode has ended, or it is closed.
            ValueError: the action is not in the space.
        """
        batch = np.asarray(action)[np.newaxis]
        observation, reward, terminated, truncated, info = self.dreams.step(batch)
        return (
            index_rows(observation, 0),
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            {"uncertainty": float(info["uncertainty"][0])},
        )

    @property
    def spec(self) -> EnvSpec | None:
        """Gymnasium's specification; its `max_episode_steps` is the horizon."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = with_horizon(spec, self.horizon)

    def render(self) -> Any:
        """Return a frame (height, width, 3) uint8 of the current state, or None."""
        frames = self.dreams.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Release the dream."""
        self.dreams.close()


def make_single(world: World | str | None = None, **options: Any) -> DreamEnv:
    """Make the `DreamEnv` of a registered id, with the `max_episode_steps` given to `gym.make`.

    `gym.make(id, max_episode_steps=n)` adds a TimeLimit wrapper, but passes `n` neither to this
    entry point nor into the environment's spec. A TimeLimit can only shorten an episode, so a dream
    longer than the world's recommended horizon would still be truncated there. Therefore `n` is
    read from the local variables of `gym.make`, the caller of this function. Called by anything
    else, this is `DreamEnv`.
    """
    caller = sys._getframe(1)
    if "max_episode_steps" not in options and caller.f_code is gym.make.__code__:
        limit = caller.f_locals.get("max_episode_steps")
        if limit is None:  # made from a spec, which holds the number
            limit = getattr(caller.f_locals.get("env_spec"), "max_episode_steps", None)
        if limit is not None:
            # In Gymnasium -1 means no limit.
            options["max_episode_steps"] = sys.maxsize if limit == -1 else limit
    return DreamEnv(world, **options)


make_single.metadata = DreamEnv.metadata  # type: ignore[attr-defined]
