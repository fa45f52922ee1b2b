"""Planners of a Box: they search over its actions, scaled to [-1, 1]."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dreamgym.data.spaces import is_float
from dreamgym.train.planners.base import Planner

UNBOUNDED = 1e9
"""A larger bound stands for no bound."""


class BoxActions:
    """Raw actions of a Box as flat units and back: bounded numbers are scaled to [-1, 1].

    A number without two bounds keeps its own unit.

    Args:
        space: space of the actions.
        device: device of the tensors.

    Attributes:
        size: numbers A of an action.
        low: (A,) lower bounds in units; may be minus infinity.
        high: (A,) upper bounds in units; may be infinity.

    Raises:
        TypeError: the space is not a Box.
    """

    def __init__(self, space: gym.Space, device: torch.device) -> None:
        if not isinstance(space, gym.spaces.Box):
            raise TypeError(
                f"this planner searches over real numbers, and the action space is {space}; for a "
                "Discrete or MultiDiscrete one use 'categorical-cem'"
            )
        low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
        bounded = (low > -UNBOUNDED) & (high < UNBOUNDED) & (high > low)
        bottom, top = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        centre, scale = (bottom + top) / 2, (top - bottom) / 2

        def tensor(values: np.ndarray) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self.size, self.shape, self.integer = low.size, space.shape, not is_float(space)
        self._centre, self._scale = tensor(centre), tensor(scale)
        self._raw_low, self._raw_high = tensor(low), tensor(high)
        self.low, self.high = tensor((low - centre) / scale), tensor((high - centre) / scale)

    def clip(self, units: Tensor) -> Tensor:
        """Return units (..., A) inside the bounds."""
        return units.clamp(self.low, self.high)

    def raw(self, units: Tensor) -> Tensor:
        """Return raw actions (..., *shape) inside the space; int64 where it has whole numbers."""
        action = (self._centre + self._scale * units).clamp(self._raw_low, self._raw_high)
        if self.integer:
            action = action.round().long()
        return action.unflatten(-1, self.shape) if self.shape else action.squeeze(-1)

    def units(self, raw: Tensor) -> Tensor:
        """Return the units (..., A) of raw actions (..., *shape)."""
        lead = raw.shape[: raw.ndim - len(self.shape)]
        return self.clip((raw.reshape(*lead, -1).float() - self._centre) / self._scale)


class BoxPlanner(Planner):
    """A planner that searches over the actions of a Box and remembers its last plan.

    Attributes:
        box: the action space in units.

    Raises:
        TypeError: the action space is not a Box.
    """

    def __init__(self, model: Any, config: Any = None, **prior: Any) -> None:
        super().__init__(model, config, **prior)
        self.box = BoxActions(model.action_space, self.device)

    def initial(self, batch_size: int) -> dict[str, Tensor]:
        """Return plans of zeros as "mean", (batch_size, H, A) in units."""
        shape = (batch_size, self.config.horizon, self.box.size)
        return {"mean": self.box.clip(torch.zeros(shape, device=self.device))}
