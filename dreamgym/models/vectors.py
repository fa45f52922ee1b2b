"""Between the vectors of a real environment and the standardised ones that a network works on."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from dreamgym.models.observations import WHOLE, Observation, part
from dreamgym.models.statistics import Statistics


class Vectors(nn.Module):
    """Standardises observations, deltas and rewards, and knows the range of the training data.

    It has buffers and no parameters. Standardised observations are called z, as elsewhere.

    Args:
        space: of the observations, a Box of floats.
        family: who asks, for messages.
        range_margin: how far beyond the training data's range z may go, as a share of it.

    Attributes:
        size: numbers in an observation.
        delta_std: (size,) root mean square of the change of z from one observation to the next.

    Raises:
        TypeError: the space is something else.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    delta_std: Tensor
    reward_mean: Tensor
    reward_std: Tensor
    worst_return: Tensor
    space_low: Tensor
    space_high: Tensor

    def __init__(self, space: gym.Space, family: str, range_margin: float) -> None:
        super().__init__()
        if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
            raise TypeError(
                f"the {family} family takes observations from a Box of floats, not {space}; wrap "
                "the environment so that it gives a float vector (FlattenObservation, say), or "
                "take a family that sees images"
            )
        self.shape, self.size = space.shape, int(np.prod(space.shape))
        self.range_margin = range_margin
        for name in ("mean", "low"):
            self.register_buffer(name, torch.zeros(self.size))
        for name in ("std", "high", "delta_std"):
            self.register_buffer(name, torch.ones(self.size))
        for name in ("reward_mean", "worst_return"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("reward_std", torch.ones(()))
        for name, bound in (("space_low", space.low), ("space_high", space.high)):
            self.register_buffer(name, torch.tensor(bound.reshape(-1), dtype=torch.float32))

    def set_statistics(self, statistics: Statistics) -> None:
        """Fit to training episodes; ranges and deltas are kept in standardised units."""
        mean, std, low, high, delta_std = statistics.vector
        margin = self.range_margin * (high - low)
        values = {
            "mean": mean,
            "std": std,
            "low": (low - margin - mean) / std,
            "high": (high + margin - mean) / std,
            "delta_std": delta_std / std,
            "reward_mean": statistics.reward_mean,
            "reward_std": statistics.reward_std,
            "worst_return": statistics.worst_return,
        }
        for name, value in values.items():
            getattr(self, name).copy_(value)

    def standardise(self, observation: Observation) -> Tensor:
        """Give z (..., size) of observations (..., *shape)."""
        whole = part(observation, WHOLE)
        lead = whole.shape[: whole.ndim - len(self.shape)]
        return (whole.reshape(*lead, self.size).float() - self.mean) / self.std

    def observation(self, z: Tensor) -> Tensor:
        """The observation (B, *shape) that z (B, size) stands for, within the space's bounds."""
        flat = torch.clamp(z * self.std + self.mean, self.space_low, self.space_high)
        return flat.reshape(-1, *self.shape)

    def limit(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a predicted z where something is known.

        What the space forbids cannot happen; what the data never showed can, and is unknown.

        Args:
            z: (B, size).

        Returns:
            z within the space and the widened range of the data, and (B,) bool: true where it lay
            beyond that range.
        """
        low, high = (bound - self.mean for bound in (self.space_low, self.space_high))
        free = torch.clamp(z, low / self.std, high / self.std)
        known = torch.clamp(free, self.low, self.high)
        return known, (free != known).any(-1)
