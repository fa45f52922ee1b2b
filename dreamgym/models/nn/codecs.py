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


def standard_range(moments: Moments, margin: float) -> tuple[Tensor, Tensor]:
    """Return the data's range, widened on each side by a share of it, in standardised units."""
    wider = margin * (moments.high - moments.low)
    low, high = moments.low - wider, moments.high + wider
    return (low - moments.mean) / moments.std, (high - moments.mean) / moments.std


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
    """Give values (..., n) within the bounds of a box its shape and dtype; integers are rounded.

    The dtype is that of `as_tensors`.
    """
    integers = not np.issubdtype(box.dtype, np.floating)
    values = (values.round() if integers else values).to(tensor_dtype(box.dtype))
    return values.reshape(*values.shape[:-1], *box.shape)


class VectorCodec(nn.Module):
    """Encode the numbers of a box for a network, and decode its outputs.

    It has buffers and no parameters; all are (size,).

    Args:
        box: space of the values, of any shape; its numbers are laid out flat.
        units: what the network works on.

    Attributes:
        size: numbers in one value.
        mean: mean of the training data.
        std: standard deviation of the training data.
        low: smallest value in the training data.
        high: largest value in the training data.
        space_low: lower bounds of the box.
        space_high: upper bounds of the box.
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

    def set_moments(self, moments: Moments) -> None:
        """Copy mean, standard deviation and range of the training data."""
        for name in ("mean", "std", "low", "high"):
            getattr(self, name).copy_(getattr(moments, name))

    def encode(self, values: Tensor) -> Tensor:
        """Convert (..., *box.shape) of the environment to (..., size) of the network."""
        flat = flattened(values, self.box.shape).to(self.mean.dtype)
        if self.units == "raw":
            return flat
        return symlog(flat) if self.units == "symlog" else (flat - self.mean) / self.std

    def decode(self, values: Tensor) -> Tensor:
        """Convert (..., size) of the network to the environment's units, within its bounds."""
        if self.units == "symlog":
            values = symexp(values)
        elif self.units == "standard":
            values = values * self.std + self.mean
        return torch.clamp(values, self.space_low, self.space_high)

    def to_space(self, values: Tensor) -> Tensor:
        """Give decoded values (..., size) the shape (..., *box.shape) and dtype of the box."""
        return to_box(values, self.box)

    def outside_data(self, values: Tensor, margin: float) -> Tensor:
        """Return where decoded values (..., size) leave the data's range: (...) bool.

        Args:
            values: outputs of `decode`.
            margin: widening of the range on each side, as a share of it.
        """
        wider = margin * (self.high - self.low)
        return ((values < self.low - wider) | (values > self.high + wider)).any(-1)


class TransitionCodec(VectorCodec):
    """A codec for models that predict changes of standardised vectors; encoded values are called z.

    `low` and `high` are in units of z and include the margin, other than those of `VectorCodec`.

    Args:
        box: space of the vectors; several vectors side by side are one box.
        margin: widening of the training data's range on each side, as a share of it.

    Attributes:
        delta_std: (size,) root mean square of the change of z from one observation to the next.
    """

    delta_std: Tensor

    def __init__(self, box: gym.spaces.Box, margin: float) -> None:
        super().__init__(box, "standard")
        self.margin = margin
        self.register_buffer("delta_std", torch.ones(self.size))

    def set_moments(self, moments: Moments, place: slice = slice(None)) -> None:
        """Fit to training data.

        Args:
            moments: (n,) moments in the environment's units.
            place: the n numbers of z that they describe; all by default.
        """
        low, high = standard_range(moments, self.margin)
        values = {
            "mean": moments.mean,
            "std": moments.std,
            "low": low,
            "high": high,
            "delta_std": moments.delta_std / moments.std,
        }
        for name, value in values.items():
            getattr(self, name)[place] = value

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
