"""Real environments that come with dreamgym: those of worlds that ship, and of examples."""

from __future__ import annotations

import gymnasium as gym

TWO_ROOM, TAKE_COVER = "dreamgym/TwoRoom-v0", "dreamgym/TakeCover-v0"
CAR_RACING = "dreamgym/CarRacing-v0"


def register_envs() -> None:
    """Register the environments; the module of one is imported when it is made."""
    for env_id, entry_point, steps in (
        (TWO_ROOM, "dreamgym.envs.two_room:TwoRoom", 100),
        (TAKE_COVER, "dreamgym.envs.take_cover:TakeCover", 2100 // 4),  # four tics a step
        (CAR_RACING, "dreamgym.envs.car_racing:CarRacing", 1000 // 4),  # four frames a step
    ):
        if env_id not in gym.registry:
            gym.register(env_id, entry_point, max_episode_steps=steps)
