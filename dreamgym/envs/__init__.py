"""Real environments that come with dreamgym, because worlds that ship are fitted to them."""

from __future__ import annotations

import gymnasium as gym

TWO_ROOM = "dreamgym/TwoRoom-v0"


def register_envs() -> None:
    """Register `dreamgym/TwoRoom-v0`; its module is imported when one is made."""
    if TWO_ROOM not in gym.registry:
        gym.register(TWO_ROOM, "dreamgym.envs.two_room:TwoRoom", max_episode_steps=100)
