"""Real environments that come with dreamgym: those of worlds that ship, and tasks of images."""

from __future__ import annotations

import gymnasium as gym

TWO_ROOM, TAKE_COVER = "dreamgym/TwoRoom-v0", "dreamgym/TakeCover-v0"
CAR_RACING = "dreamgym/CarRacing-v0"
SWINGUP, PUSH_T = "dreamgym/CartPoleSwingup-v0", "dreamgym/PushT-v0"


def register_envs() -> None:
    """Register the environments; the module of one is imported when it is made."""
    # PlaNet (arXiv 1811.04551) holds an action of this task for eight steps.
    swingup = {"domain": "cartpole", "task": "swingup", "frame_skip": 8}
    for env_id, entry_point, steps, kwargs in (
        (TWO_ROOM, "dreamgym.envs.two_room:TwoRoom", 100, {}),
        (TAKE_COVER, "dreamgym.envs.take_cover:TakeCover", 2100 // 4, {}),  # four tics a step
        (CAR_RACING, "dreamgym.envs.car_racing:CarRacing", 1000 // 4, {}),  # four frames a step
        (PUSH_T, "dreamgym.envs.push_t:PushT", 100, {}),
        (SWINGUP, "dreamgym.envs.control_suite:ControlSuite", 1000 // 8, swingup),
    ):
        if env_id not in gym.registry:
            gym.register(env_id, entry_point, max_episode_steps=steps, kwargs=kwargs)
