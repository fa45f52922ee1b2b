"""Gymnasium ids: one for any world, and one for each world that ships."""

from __future__ import annotations

import gymnasium as gym

from dreamgym.world import zoo

ANY_WORLD = f"{zoo.NAMESPACE}/World-v0"


def register_worlds() -> None:
    """Register `dreamgym/World-v0`, and `dreamgym/<name>` for each folder of `pretrained/`.

    Only folder names are read: no weights are loaded, and torch is not imported.
    """
    _register(ANY_WORLD)
    for name in zoo.names():
        _register(f"{zoo.NAMESPACE}/{name}", world=name)


def _register(env_id: str, **kwargs: str) -> None:
    if env_id in gym.registry:
        return
    gym.register(
        env_id,
        entry_point="dreamgym.dream.env:make_single",
        vector_entry_point="dreamgym.dream.vector_env:DreamVectorEnv",
        kwargs=kwargs,
    )
