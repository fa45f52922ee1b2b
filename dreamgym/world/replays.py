"""Replays: a real episode beside dreams of the same actions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym._device import float32_by_default
from dreamgym.data.episodes import Episode
from dreamgym.errors import WorldError
from dreamgym.metrics.windows import uniform_noise
from dreamgym.models import Decodes, imagine
from dreamgym.models.base import model_device, zero_action
from dreamgym.models.observations import Observation, as_tensors
from dreamgym.world.world import World


class Replay(NamedTuple):
    """A real episode and dreams of its actions, all from the same first observation.

    Attributes:
        real: (T + 1, n) observations, in the real environment's units.
        dreamt: (samples, T + 1, n) observations, in the same units.
    """

    real: NDArray[np.floating]
    dreamt: NDArray[np.floating]


@float32_by_default()
@torch.no_grad()
def replay(world: World, episode: Episode, *, samples: int = 32, seed: int = 0) -> Replay:
    """Dream a real episode's actions open-loop, from its first observation.

    Args:
        world: world with a decoder.
        episode: episode of the world's environment, preferably one that it was not fitted to.
        samples: number of dreams, each with its own noise.
        seed: seed of that noise.

    Returns:
        The real observations and the dreamt ones.

    Raises:
        WorldError: the world has no decoder, or its observations are not single vectors.
    """
    model = world.model
    if not isinstance(model, Decodes):
        raise WorldError(
            f"world {world.name!r} has no decoder, so its dreams cannot be compared with "
            "observations; replay in a world whose model decodes"
        )
    rng = np.random.default_rng(seed)
    device = model_device(model)
    real, actions = np.asarray(episode.observations), torch.from_numpy(episode.actions).to(device)
    noise = uniform_noise(rng, (samples, episode.length + 1, model.noise_dim), device)
    first = _check_vector(as_tensors(real[:1], device)).expand(samples, -1)
    no_action = zero_action(world.action_space, samples, device)
    start = model.observe(model.initial(samples), no_action, first, noise[:, 0])
    repeated = actions.expand(samples, *actions.shape)
    states, _ = imagine(model, start, repeated, noise[:, 1:])
    steps = [
        start,
        *({key: leaf[:, t] for key, leaf in states.items()} for t in range(len(actions))),
    ]
    dreamt = torch.stack([_check_vector(model.decode(state)) for state in steps], 1)
    return Replay(real=real, dreamt=dreamt.cpu().numpy())


def _check_vector(observation: Observation) -> Tensor:
    if isinstance(observation, dict) or observation.ndim != 2:
        raise WorldError("expected observations that are one vector; images and Dicts have none")
    return observation
