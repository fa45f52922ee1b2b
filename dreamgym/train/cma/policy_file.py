"""A controller on disk: safetensors, with the policy's card as JSON in its metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from dreamgym._files import atomic_file
from dreamgym.data.spaces import space_from_json
from dreamgym.errors import PolicyFileError
from dreamgym.models.weights import not_finite
from dreamgym.train.cma.controller import Controller
from dreamgym.train.policy import (
    PolicyCard,
    TrainedPolicy,
    not_finite_error,
    policy_space_limit,
)

_CARD = "dreamgym"
_WEIGHTS, _FITNESS = "weights", "fitness"


@dataclass(frozen=True, kw_only=True)
class Evolved:
    """What of an evolution is stored: training goes on from it.

    Attributes:
        fitness: (G, popsize) fitness of the candidates of each generation.
    """

    fitness: NDArray[np.float64]


def actor(policy: TrainedPolicy) -> nn.Module:
    """See `LearnerLibrary.actor`."""
    return policy.network


def save(policy: TrainedPolicy, path: Path) -> None:
    """See `LearnerLibrary.save`."""
    tensors = {
        _WEIGHTS: policy.network.weights.detach().cpu().contiguous(),
        _FITNESS: torch.from_numpy(policy.algorithm.fitness),
    }
    metadata = {_CARD: json.dumps(policy.card.as_dict())}
    try:
        with atomic_file(path) as temporary:
            temporary.write_bytes(to_bytes(tensors, metadata))
    except OSError as error:
        raise PolicyFileError(f"the policy cannot be written to {path}: {error}") from error


def load(path: Path, *, algo: str | None, env: gym.Env[Any, Any] | None) -> TrainedPolicy:
    """See `LearnerLibrary.load`."""
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})[_CARD])
            weights, fitness = file.get_tensor(_WEIGHTS), file.get_tensor(_FITNESS)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise PolicyFileError(
            f"{path} is not a controller of dreamgym ({error}); expected a file of dreamgym train "
            "--algo CMA-ES"
        ) from None
    if not isinstance(values, dict):
        raise PolicyFileError(f"the card in {path} is not a JSON object; the file is damaged")
    card = PolicyCard.from_dict(values)
    try:
        action_space = space_from_json(card.action_space, policy_space_limit(path))
        with torch.device("meta"):
            expected = Controller(action_space, **card.policy).weights.shape
        if expected != weights.shape:
            raise ValueError(f"its weights are {tuple(weights.shape)}, expected {tuple(expected)}")
        network = Controller(action_space, **card.policy)
        network.weights.copy_(weights)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise PolicyFileError(f"no policy can be built from {path}: {error}") from error
    name = not_finite(network)
    if name is not None:
        raise not_finite_error(path, name)
    return TrainedPolicy(
        network=network.eval(), card=card, algorithm=Evolved(fitness=fitness.numpy())
    )
