"""The same actions in reality and in dreams: what a world foresees of a real episode."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.data.episodes import Episode
from dreamgym.errors import WorldError
from dreamgym.models import Decodes, imagine
from dreamgym.models.base import zero_action
from dreamgym.models.observations import Observation
from dreamgym.world.world import World


class Replay(NamedTuple):
    """A real episode and dreams of its actions, from the same first observation on.

    Attributes:
        real: (T + 1, n) observations, in the real environment's units.
        dreamt: (samples, T + 1, n) likewise.
    """

    real: NDArray[np.floating]
    dreamt: NDArray[np.floating]


@torch.no_grad()
def replay(world: World, episode: Episode, *, samples: int = 32, seed: int = 0) -> Replay:
    """Dream a real episode's actions open-loop, from its first observation.

    Args:
        world: a world with a decoder.
        episode: of the environment that the world was fitted to, best one it was not fitted on.
        samples: dreams of the same actions, with noise of their own.
        seed: of that noise.

    Returns:
        The real observations and the dreamt ones.

    Raises:
        WorldError: the world has no decoder.
    """
    model = world.model
    if not isinstance(model, Decodes):
        raise WorldError(
            f"world {world.name!r} has no decoder: its dreams cannot be laid over data"
        )
    rng = np.random.default_rng(seed)
    real, actions = np.asarray(episode.observations), torch.from_numpy(episode.actions)
    noise = torch.from_numpy(
        rng.random((samples, episode.length + 1, model.noise_dim), dtype=np.float32)
    )
    first = torch.from_numpy(real[:1]).expand(samples, *real.shape[1:])
    nothing = zero_action(world.action_space, samples, "cpu")
    begun = model.observe(model.initial(samples), nothing, first, noise[:, 0])
    repeated = actions.expand(samples, *actions.shape)
    states, _ = imagine(model, begun, repeated, noise[:, 1:])
    dreams = [
        begun,
        *({key: leaf[:, t] for key, leaf in states.items()} for t in range(len(actions))),
    ]
    seen = torch.stack([_vector(model.decode(state)) for state in dreams], 1)
    return Replay(real=real, dreamt=seen.numpy())


def _vector(observation: Observation) -> Tensor:
    if isinstance(observation, dict) or observation.ndim != 2:
        raise WorldError("only observations that are one vector can be laid over each other")
    return observation
