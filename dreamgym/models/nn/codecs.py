"""Between the vectors of a real environment and the standardised ones that a network works on."""

from __future__ import annotations

import math
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from dreamgym.models.nn.distributions import symexp, symlog
from dreamgym.models.observations import WHOLE, Observation, get_part
from dreamgym.models.statistics import Moments, Statistics

Units = Literal["raw", "symlog", "standard"]


def flattened(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Values (..., *shape) as (..., n)."""
    return values.reshape(*values.shape[: values.ndim - len(shape)], math.prod(shape))


def standard_range(moments: Moments, margin: float) -> tuple[Tensor, Tensor]:
    """The data's range in standardised units, widened on each side by this share of it; (n,)."""
    wider = margin * (moments.high - moments.low)
    low, high = moments.low - wider, moments.high + wider
    return (low - moments.mean) / moments.std, (high - moments.mean) / moments.std


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
        moments = statistics.vector
        low, high = standard_range(moments, self.range_margin)
        values = {
            "mean": moments.mean,
            "std": moments.std,
            "low": low,
            "high": high,
            "delta_std": moments.delta_std / moments.std,
            "reward_mean": statistics.reward_mean,
            "reward_std": statistics.reward_std,
            "worst_return": statistics.worst_return,
        }
        for name, value in values.items():
            getattr(self, name).copy_(value)

    def standardise(self, observation: Observation) -> Tensor:
        """Give z (..., size) of observations (..., *shape)."""
        flat = flattened(get_part(observation, WHOLE), self.shape).float()
        return (flat - self.mean) / self.std

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


class Codec(nn.Module):
    """Numbers of a box between the real environment's units and those of a network.

    Args:
        box: of any shape; its numbers are laid out flat.
        units: "raw", "symlog" or "standard".
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    space_low: Tensor
    space_high: Tensor

    def __init__(self, box: gym.spaces.Box, units: Units) -> None:
        super().__init__()
        self.box, self.units, self.size = box, units, math.prod(box.shape)
        low, high = (torch.tensor(b.reshape(-1), dtype=torch.float32) for b in (box.low, box.high))
        self.register_buffer("space_low", low)
        self.register_buffer("space_high", high)
        # Bytes have no moments (`measure`): their bounds say enough.
        bytes_ = box.dtype == np.uint8
        self.register_buffer("mean", (low + high) / 2 if bytes_ else torch.zeros(self.size))
        self.register_buffer("std", (high - low) / 2 if bytes_ else torch.ones(self.size))
        self.register_buffer("low", low.clone() if bytes_ else torch.zeros(self.size))
        self.register_buffer("high", high.clone() if bytes_ else torch.ones(self.size))

    def set_moments(self, moments: Moments) -> None:
        """Take over mean, spread and range of the training data."""
        for name in ("mean", "std", "low", "high"):
            getattr(self, name).copy_(getattr(moments, name))

    def inwards(self, values: Tensor) -> Tensor:
        """(..., *box.shape) of the real environment as (..., size) of the network."""
        flat = flattened(values, self.box.shape).to(self.mean.dtype)
        if self.units == "raw":
            return flat
        return symlog(flat) if self.units == "symlog" else (flat - self.mean) / self.std

    def outwards(self, values: Tensor) -> Tensor:
        """(..., size) of the network in the real environment's units, within the space."""
        if self.units == "symlog":
            values = symexp(values)
        elif self.units == "standard":
            values = values * self.std + self.mean
        return torch.clamp(values, self.space_low, self.space_high)

    def shaped(self, values: Tensor) -> Tensor:
        """(..., size) of `outwards` as the space has it: (..., *box.shape) of its own kind."""
        whole = not np.issubdtype(self.box.dtype, np.floating)
        kind = torch.from_numpy(np.empty(0, self.box.dtype)).dtype
        values = (values.round() if whole else values).to(kind)
        return values.reshape(*values.shape[:-1], *self.box.shape)

    def unknown(self, values: Tensor, margin: float) -> Tensor:
        """Where (...) values (..., size) of `outwards` leave the data's range, widened."""
        wider = margin * (self.high - self.low)
        return ((values < self.low - wider) | (values > self.high + wider)).any(-1)
