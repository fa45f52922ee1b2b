"""Taking in actions: shape, kind and range, checked before the engine sees them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

FEW = 16
"""Up to so many numbers, Python compares them faster than torch can be asked to."""

TOLERANCE = 1e-5
"""How far outside its bounds a Box action may lie, relative to the width: rounding, no more."""


class ActionIntake:
    """Turns what a caller gives into the tensor that a model takes.

    Args:
        space: action space of one environment.
        num_envs: rows.
        device: where the dreams are.
        looks: whether to refuse actions outside the space, which asks the device.
    """

    def __init__(
        self, space: gym.Space, num_envs: int, device: torch.device, *, looks: bool
    ) -> None:
        self.space, self.device, self.looks = space, device, looks
        self.shape = (num_envs, *(space.shape or ()))
        self.continuous = isinstance(space, gym.spaces.Box)
        if isinstance(space, gym.spaces.Box):
            low, high = space.low, space.high
            # An infinite bound has no width to be relative to, and needs none.
            slack = TOLERANCE * np.where(np.isfinite(high - low), high - low, 0.0)
            low, high = low - slack, high + slack
        elif isinstance(space, gym.spaces.Discrete):
            low, high = np.asarray(space.start), np.asarray(space.start + space.n - 1)
        elif isinstance(space, gym.spaces.MultiDiscrete):
            low, high = np.asarray(space.start), np.asarray(space.start + space.nvec - 1)
        else:
            raise TypeError(f"actions from {space} cannot be dreamt")
        self.dtype = torch.float32 if self.continuous else torch.int64
        # Of every row: a comparison with bounds that are broadcast takes six times as long.
        self.low, self.high = (
            torch.as_tensor(bound, device=device).to(self.dtype).expand(self.shape).contiguous()
            for bound in (low, high)
        )
        count = int(np.prod(self.shape))
        self._bounds = self._bounds_of_all() if looks and count <= FEW else None

    def __call__(self, actions: Any) -> Tensor:
        """Check and convert.

        Args:
            actions: (N, ...) tensor, array or list.

        Raises:
            ValueError: another shape, kind or device, or (where it looks) outside the space.
        """
        if isinstance(actions, Tensor) and self._is_as_wanted(actions):
            taken = actions
        else:
            taken = self._converted(actions)
        if self.looks:
            self._check_range(taken)
        return taken

    def _is_as_wanted(self, actions: Tensor) -> bool:
        return (
            actions.dtype is self.dtype
            and actions.device == self.device
            and actions.shape == self.shape
        )

    def _converted(self, actions: Any) -> Tensor:
        """The same as a tensor of the wanted dtype; see `__call__`."""
        try:
            given = actions if isinstance(actions, Tensor) else torch.as_tensor(np.asarray(actions))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"actions of type {type(actions).__name__} are no numbers ({error}); give "
                f"{self.shape}: one of {self.space} for each environment"
            ) from error
        if given.shape != self.shape:
            raise ValueError(
                f"actions have shape {tuple(given.shape)}; give {self.shape}: one of "
                f"{self.space} for each environment"
            )
        kind_fits = given.dtype.is_floating_point == self.continuous and not given.is_complex()
        if not kind_fits or given.dtype == torch.bool:
            wanted = "floating-point numbers" if self.continuous else "whole numbers"
            raise ValueError(f"actions have dtype {given.dtype}; give {wanted} for {self.space}")
        if isinstance(actions, Tensor) and given.device != self.device:
            raise ValueError(
                f"actions are on {given.device} and the dream on {self.device}; "
                f"move them with .to({str(self.device)!r})"
            )
        return given.to(self.device, self.dtype)

    def _bounds_of_all(self) -> list[tuple[float, float]]:
        """The least and the greatest of each number of all rows, in order."""
        low, high = (bound.reshape(-1).tolist() for bound in (self.low, self.high))
        return list(zip(low, high, strict=True))

    def _check_range(self, actions: Tensor) -> None:
        if self._bounds is not None:
            for x, (low, high) in zip(actions.reshape(-1).tolist(), self._bounds, strict=True):
                if not low <= x <= high:
                    break
            else:
                return
        # Two calls where nothing is wrong; what is no number equals nothing.
        if not torch.equal(torch.clamp(actions, self.low, self.high), actions):
            inside = (actions >= self.low) & (actions <= self.high)
            row = int((~inside).reshape(len(actions), -1).any(1).nonzero()[0])
            raise ValueError(
                f"the action of environment {row} is {actions[row].tolist()}, outside "
                f"{self.space}; "
                + ("clip it (torch.clamp) or " if self.continuous else "")
                + "correct the policy"
            )
