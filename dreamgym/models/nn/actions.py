"""Encoding of raw actions as vectors for a network."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from dreamgym.errors import UnsupportedSpaceError
from dreamgym.models.statistics import Moments

UNBOUNDED = 1e9
"""A larger bound stands for no bound, such as the largest float32: divided by it, all actions would
be the same."""

MOST_CHOICES = 2**16
"""Choices that are encoded at most, one number each."""


class ActionEncoder(nn.Module):
    """Encode actions: one-hot for discrete spaces, scaled to [-1, 1] for a bounded Box.

    `fit` adapts it to the training data: unbounded numbers of a Box are standardised, and a number
    that never changed there has no effect. `set_moments` standardises a whole Box, in families
    whose authors do so.

    Args:
        space: space of the actions.

    Attributes:
        dim: width of the encoding.

    Raises:
        TypeError: the space is not a Box, Discrete or MultiDiscrete, or has too many choices.
    """

    centre: Tensor
    scale: Tensor
    choice: Tensor
    value: Tensor

    def __init__(self, space: gym.Space) -> None:
        super().__init__()
        self.space = space
        if isinstance(space, gym.spaces.Box):
            # In float64, because the width of an int8 Box does not fit in int8.
            low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
            # Integers always have bounds, and random ones use the whole width.
            near = (low > -UNBOUNDED) & (high < UNBOUNDED)
            bounded = (near | np.issubdtype(space.dtype, np.integer)) & (high > low)
            bottom, top = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
            centre, scale = (bottom + top) / 2, (top - bottom) / 2
            centre = np.where(np.isfinite(low) & (low == high), low, centre)
            self.dim, self.bounded = low.size, torch.from_numpy(bounded)
            self.register_buffer("centre", torch.tensor(centre, dtype=torch.float32))
            self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        elif isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            counts = space.n if isinstance(space, gym.spaces.Discrete) else space.nvec
            sizes, starts = np.ravel(counts), np.ravel(space.start)
            self.dim = int(np.sum(sizes, dtype=object))
            if self.dim > MOST_CHOICES:
                raise UnsupportedSpaceError(
                    f"actions from {space} cannot be modelled: each of the {self.dim:,} choices is "
                    f"a number of the encoding, and at most {MOST_CHOICES:,} are supported; record "
                    "with fewer choices, or with a Box, by gymnasium.wrappers.TransformAction"
                )
            # All classes side by side; `choice` is the index of the number that a class belongs to.
            choice = np.repeat(np.arange(len(sizes)), sizes)
            value = np.concatenate([np.arange(n) + s for n, s in zip(sizes, starts, strict=True)])
            self.register_buffer("choice", torch.tensor(choice, dtype=torch.int64))
            self.register_buffer("value", torch.tensor(value, dtype=torch.int64))
        else:
            raise TypeError(
                f"actions from {space} cannot be modelled; supported: Box, Discrete, MultiDiscrete"
            )

    def fit(self, moments: Moments, *, standardise: bool = False) -> None:
        """Fit to the actions of the training data.

        Args:
            moments: (n,) moments of a single action, in the environment's units.
            standardise: standardise all numbers; otherwise only those without bounds.
        """
        blocks = self.dim // moments.mean.numel()
        centre, scale = self.centre, self.scale
        bounded = self.bounded.view(blocks, -1)[0].to(centre.device)
        mean, std = moments.mean.to(centre), moments.std.to(scale)
        if not standardise:
            mean = torch.where(bounded, centre[: len(mean)], mean)
            std = torch.where(bounded, scale[: len(std)], std)
        # The effect of a number that never changed cannot be learnt. It is encoded as zero, because
        # otherwise an untrained weight would give it an effect.
        self.set_moments(mean, torch.where(moments.constant.to(std.device), torch.inf, std))

    @torch.no_grad()
    def set_moments(self, mean: Tensor, std: Tensor) -> None:
        """Standardise Box actions from now on.

        Args:
            mean: (n,) mean of a single action, in the environment's units. It is repeated for a
                block of k actions (`FrameSkip`), which has k * n numbers.
            std: (n,) standard deviation of a single action.

        Raises:
            TypeError: the space is not a Box.
            ValueError: n does not divide the size of an action.
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
        """Encode raw actions.

        Args:
            action: (..., *space.shape).

        Returns:
            (..., dim), in the dtype of the model.
        """
        lead = action.shape[: action.ndim - len(self.space.shape or ())]
        flat = action.reshape(*lead, -1)
        if isinstance(self.space, gym.spaces.Box):
            return (flat.to(self.centre.dtype) - self.centre) / self.scale
        # A comparison instead of `one_hot`, whose range check syncs with the host.
        return torch.eq(flat.long()[..., self.choice], self.value).float()
