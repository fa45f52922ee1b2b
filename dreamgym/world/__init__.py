"""Worlds: fitted models on disk, with their card, start states and provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names
from dreamgym.errors import WorldError

if TYPE_CHECKING:
    from dreamgym.world.hub import HubWorld as HubWorld
    from dreamgym.world.hub import Pushed as Pushed
    from dreamgym.world.replays import Replay as Replay
    from dreamgym.world.replays import replay as replay
    from dreamgym.world.start_states import StartStates as StartStates
    from dreamgym.world.world import World as World
    from dreamgym.world.world import annotate as annotate
    from dreamgym.world.world import load as load
    from dreamgym.world.world import push as push
    from dreamgym.world.zoo import ShippedWorld as ShippedWorld
    from dreamgym.world.zoo import worlds as worlds

__all__ = [
    "HubWorld",
    "Pushed",
    "Replay",
    "ShippedWorld",
    "StartStates",
    "World",
    "WorldError",
    "annotate",
    "load",
    "push",
    "replay",
    "worlds",
]

# `import dreamgym` reads the names of shipped worlds, so only using a world may import torch.
__getattr__ = lazy_names(
    __name__,
    {
        "replays": ["Replay", "replay"],
        "start_states": ["StartStates"],
        "world": ["World", "annotate", "load", "push"],
        "hub": ["HubWorld", "Pushed"],
        "zoo": ["ShippedWorld", "worlds"],
    },
)
