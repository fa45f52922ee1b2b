"""Raw actions as the vectors that a network takes."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn


class ActionEncoder(nn.Module):
    """Discrete and MultiDiscrete as one-hot, a bounded Box scaled to [-1, 1], others as they are.

    With `set_moments` a Box is standardised instead, in families whose authors do so.

    Attributes:
        dim: width of the encoding.
    """

    centre: Tensor
    scale: Tensor
    choice: Tensor
    value: Tensor

    def __init__(self, space: gym.Space) -> None:
        super().__init__()
        self.space = space
        if isinstance(space, gym.spaces.Box):
            low, high = space.low.reshape(-1), space.high.reshape(-1)
            bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
            centre = np.where(bounded, (low + high) / 2, 0.0)
            scale = np.where(bounded, (high - low) / 2, 1.0)
            self.dim = low.size
            self.register_buffer("centre", torch.tensor(centre, dtype=torch.float32))
            self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        elif isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            counts = space.n if isinstance(space, gym.spaces.Discrete) else space.nvec
            sizes, starts = np.ravel(counts), np.ravel(space.start)
            self.dim = int(np.sum(sizes))
            # One row of classes for all choices: each class knows which choice it belongs to.
            choice = np.repeat(np.arange(len(sizes)), sizes)
            value = np.concatenate([np.arange(n) + s for n, s in zip(sizes, starts, strict=True)])
            self.register_buffer("choice", torch.tensor(choice, dtype=torch.int64))
            self.register_buffer("value", torch.tensor(value, dtype=torch.int64))
        else:
            raise TypeError(
                f"actions from {space} cannot be modelled; supported: Box, Discrete, MultiDiscrete"
            )

    @torch.no_grad()
    def set_moments(self, mean: Tensor, std: Tensor) -> None:
        """Standardise the actions of a Box from now on.

        Args:
            mean: (n,) of each number of a single action, in the environment's units; of a block of
                k actions (`FrameSkip`), which has k * n numbers, all have the same.
            std: (n,) likewise.

        Raises:
            TypeError: the actions are no Box.
            ValueError: n does not divide the numbers of an action.
        """
        if not isinstance(self.space, gym.spaces.Box):
            raise TypeError(f"actions from {self.space} have no mean; only a Box is standardised")
        for name, values in (("centre", mean), ("scale", std)):
            numbers = values.numel()
            if not numbers or self.dim % numbers:
                raise ValueError(
                    f"{numbers} numbers do not divide the {self.dim} of an action; give one for "
                    "each number of a single action"
                )
            getattr(self, name).copy_(values.flatten().repeat(self.dim // numbers))

    def forward(self, action: Tensor) -> Tensor:
        """Encode.

        Args:
            action: (..., *space.shape).

        Returns:
            (..., dim), in the dtype of the model.
        """
        lead = action.shape[: action.ndim - len(self.space.shape or ())]
        flat = action.reshape(*lead, -1)
        if isinstance(self.space, gym.spaces.Box):
            return (flat.to(self.centre.dtype) - self.centre) / self.scale
        # An equality and no `one_hot`: nothing to check, so nothing is asked of the device.
        return torch.eq(flat.long()[..., self.choice], self.value).float()
