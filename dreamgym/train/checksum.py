"""Which world a policy was trained in."""

from __future__ import annotations

import hashlib

from safetensors.torch import save

from dreamgym.world import World


def world_checksum(world: World) -> str:
    """SHA-256 of the world's weights as its `model.safetensors` holds them."""
    weights = {
        key: value.detach().cpu().contiguous() for key, value in world.model.state_dict().items()
    }
    return hashlib.sha256(save(weights)).hexdigest()
