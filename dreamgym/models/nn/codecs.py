"""Conversion between the vectors of a real environment and those that a network works on.

`VectorCodec` encodes and decodes; `TransitionCodec` adds the scale of changes and limits in the
network's units, for families that predict the next vector from the last one.
"""

from __future__ import annotations

import math
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from dreamgym.models.nn.distributions import symexp, symlog
from dreamgym.models.observations import tensor_dtype
from dreamgym.models.statistics import Moments

Units = Literal["raw", "symlog", "standard"]
"""What a network works on: the environment's units, their symlog, or standardised numbers."""


def flattened(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Reshape values (..., *shape) to (..., n)."""
    return values.reshape(*values.shape[: values.ndim - len(shape)], math.prod(shape))


KNOWN_CHANGES = 3.0
"""A value that is fewer typical changes beyond the data's range may be one step away from it.

In CartPole and Pendulum three changes are below a quarter of the range, so that a margin of 0.3 of
the range decides; the changes do so in noise, whose range is a few standard deviations."""


SPARSE_WEIGHT = 0.01
"""Weight of sparse channels (`Moments.sparse`) in a likelihood.

Where it is almost certain that a channel stays at one value, its variance is small and its
likelihood steep. Of the 105 numbers of MuJoCo's Ant, the 78 contact forces would decide the
gradient of the layers that all numbers share. The last layer's own weights for them still learn at
full speed, because the optimizers normalise the gradient of each weight."""


def widened_range(
    low: Tensor, high: Tensor, margin: float, least: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Widen the data's range on each side by a share of it, and by the rounding of float32.

    Decoded values are float32 numbers: where the range has hardly more digits than they have, the
    nearest one may lie just outside.

    Args:
        low: (n,) smallest values.
        high: (n,) largest values.
        margin: share of the range.
        least: (n,) smallest widening.
    """
    rounding = 2 * torch.finfo(torch.float32).eps * torch.maximum(low.abs(), high.abs())
    # Not 0 * infinity, where an infinite margin switches ranges off.
    share = torch.where(high > low, margin * (high - low), 0.0)
    wider = share.clamp(min=least) + rounding
    return low - wider, high + wider


def standardised(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (values - mean) / std in the dtype of `mean`.

    Values in float64 are centred before they are cast: with a large offset (map coordinates, clock
    time), float32 would keep the offset and lose the variation.
    """
    return ((values - mean) / std).to(mean.dtype)


def float32_bounds(box: gym.spaces.Box) -> tuple[Tensor, Tensor]:
    """Return the bounds of a box, (n,) each, as the nearest float32 numbers that lie within it."""
    low, high = box.low.reshape(-1), box.high.reshape(-1)
    with np.errstate(over="ignore"):
        inner_low, inner_high = low.astype(np.float32), high.astype(np.float32)
    inner_low = np.where(inner_low < low, np.nextafter(inner_low, np.float32(np.inf)), inner_low)
    inner_high = np.where(
        inner_high > high, np.nextafter(inner_high, np.float32(-np.inf)), inner_high
    )
    return torch.from_numpy(inner_low), torch.from_numpy(inner_high)


def to_box(values: Tensor, box: gym.spaces.Box) -> Tensor:
    """Convert values (..., n) within a box's bounds to its shape and dtype; integers are rounded.

    The dtype is that of `as_tensors`.
    """
    integers = not np.issubdtype(box.dtype, np.floating)
    values = (values.round() if integers else values).to(tensor_dtype(box.dtype))
    return values.reshape(*values.shape[:-1], *box.shape)


class VectorCodec(nn.Module):
    """Encode the numbers of a box for a network, and decode its outputs.

    It has buffers and no parameters; all are (size,). Decoded values are within the bounds of the
    box. A channel that cannot drift (`Moments.drifts`), one that is constant or noise, also stays
    within the range of the training data, so it never counts as having left it. The same holds on
    the side of a bound that the data shows (`Moments.low_is_bound`): a model that passes the stop
    of a joint is wrong, not somewhere new.

    Args:
        box: space of the values, of any shape; its numbers are laid out flat.
        units: what the network works on.

    Attributes:
        size: numbers in one value.
        mean: mean of the training data.
        std: standard deviation of the training data.
        low: smallest value in the training data.
        high: largest value in the training data.
        space_low: lower bounds of decoded values: those of the box or of the data's range; see
            `Moments.limits`.
        space_high: upper bounds of decoded values.
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
        low, high = float32_bounds(box)
        self.register_buffer("space_low", low)
        self.register_buffer("space_high", high)
        # Bytes have no moments (`measure_statistics`): they are scaled by their bounds.
        bytes_ = box.dtype == np.uint8
        self.register_buffer("mean", (low + high) / 2 if bytes_ else torch.zeros(self.size))
        self.register_buffer("std", (high - low) / 2 if bytes_ else torch.ones(self.size))
        self.register_buffer("low", low.clone() if bytes_ else torch.zeros(self.size))
        self.register_buffer("high", high.clone() if bytes_ else torch.ones(self.size))

    def set_moments(self, moments: Moments, place: slice = slice(None)) -> None:
        """Fit to training data.

        Args:
            moments: (n,) moments in the environment's units.
            place: the n numbers of a value that they describe; all by default.
        """
        for name in ("mean", "std", "low", "high"):
            getattr(self, name)[place] = getattr(moments, name).to(self.mean)
        bounds = [bound[place].to(moments.low) for bound in float32_bounds(self.box)]
        low, high = moments.limits(*bounds)
        self.space_low[place], self.space_high[place] = low.to(self.mean), high.to(self.mean)

    def encode(self, values: Tensor) -> Tensor:
        """Convert (..., *box.shape) of the environment to (..., size) of the network."""
        flat = flattened(values, self.box.shape)
        if self.units == "standard":
            return standardised(flat, self.mean, self.std)
        flat = flat.to(self.mean.dtype)
        return symlog(flat) if self.units == "symlog" else flat

    def decode(self, values: Tensor) -> Tensor:
        """Convert (..., size) of the network to the environment's units, within its bounds."""
        if self.units == "symlog":
            values = symexp(values)
        elif self.units == "standard":
            values = values * self.std + self.mean
        return torch.clamp(values, self.space_low, self.space_high)

    def to_space(self, values: Tensor) -> Tensor:
        """Convert decoded values (..., size) to the box's shape (..., *box.shape) and dtype."""
        return to_box(values, self.box)

    def outside_data(self, values: Tensor, margin: float) -> Tensor:
        """Return where decoded values (..., size) leave the data's range: (...) bool.

        Args:
            values: outputs of `decode`.
            margin: widening of the range on each side, as a share of it.
        """
        low, high = widened_range(self.low, self.high, margin)
        return ((values < low) | (values > high)).any(-1)


class TransitionCodec(VectorCodec):
    """A codec for models that predict changes of standardised vectors; encoded values are called z.

    `low` and `high` are in units of z and include the margin, unlike those of `VectorCodec`.

    Args:
        box: space of the vectors; several vectors side by side are one box.
        margin: widening of the training data's range on each side, as a share of it; at least
            `KNOWN_CHANGES`.

    Attributes:
        delta_std: (size,) root mean square of the change of z from one observation to the next.
        weight: (size,) weight of each number in a likelihood, `SPARSE_WEIGHT` or one; it is not
            saved.
    """

    delta_std: Tensor
    weight: Tensor

    def __init__(self, box: gym.spaces.Box, margin: float) -> None:
        super().__init__(box, "standard")
        self.margin = margin
        self.register_buffer("delta_std", torch.ones(self.size))
        # Worlds of before have none, so it is not saved: `set_moments` sets it in every fit that
        # fits normalisers.
        self.register_buffer("weight", torch.ones(self.size), persistent=False)

    def set_moments(self, moments: Moments, place: slice = slice(None)) -> None:
        """Fit to training data.

        Args:
            moments: (n,) moments in the environment's units.
            place: the n numbers of z that they describe; all by default.
        """
        super().set_moments(moments, place)
        mean, std = self.mean[place].to(moments.mean), moments.std
        # One typical step does not leave the data, not even in noise of a few standard deviations.
        step = torch.where(moments.constant, 0.0, KNOWN_CHANGES * moments.delta_std)
        low, high = widened_range(moments.low, moments.high, self.margin, step)
        self.low[place] = ((low - mean) / std).to(self.mean)
        self.high[place] = ((high - mean) / std).to(self.mean)
        self.delta_std[place] = (moments.delta_std / std).to(self.mean)
        self.weight[place] = torch.where(moments.sparse, SPARSE_WEIGHT, 1.0).to(self.mean)

    def likelihood_weight(self) -> Tensor:
        """Return `weight` (size,), relative to the largest: all are one if all are sparse."""
        return self.weight / self.weight.amax()

    def within_space(self, z: Tensor) -> Tensor:
        """Clamp z (..., size) to the bounds of the space."""
        low, high = (bound - self.mean for bound in (self.space_low, self.space_high))
        return torch.clamp(z, low / self.std, high / self.std)

    def limit(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Clamp a predicted z to the bounds of the space and the range of the data.

        A prediction beyond the bounds of the space is an error that can be corrected. Of one within
        the space but beyond the data's range, the model cannot know whether it is right.

        Args:
            z: (B, size).

        Returns:
            The clamped z, and (B,) bool: true for rows that the space allows but the data does not
            cover; see `end_outside_data`.
        """
        possible = self.within_space(z)
        known = torch.clamp(possible, self.low, self.high)
        return known, (possible != known).any(-1)
