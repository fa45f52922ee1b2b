"""The controller that evolution trains: a linear layer, or a small MLP, on what the policy sees."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dreamgym.data.spaces import is_float

_CLIP = 10.0  # standard deviations
_UNBOUNDED = 1e9


class Controller(nn.Module):
    """C of *World Models* (arXiv 1803.10122, section 2.3): one vector of parameters is one policy.

    Observations are standardised by fixed numbers. The outputs become an action: tanh, scaled to
    the bounds, for a bounded number of a Box; the number itself for one without bounds; and the
    largest output for each Discrete choice.

    Args:
        action_space: action space of one environment: Box, Discrete or MultiDiscrete.
        mean: (n,) mean of each entry of the flattened observation.
        std: (n,) standard deviation of each entry, above 0.
        hidden: widths of the hidden layers, with tanh; none for a linear controller.

    Attributes:
        weights: (P,) the parameters.
        size: number of parameters P.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        action_space: gym.Space[Any],
        mean: Sequence[float],
        std: Sequence[float],
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.action_space = action_space
        self._choices: list[int] = []
        centre = scale = np.zeros(0)
        if isinstance(action_space, gym.spaces.Box):
            low, high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)
            bounded = ((low > -_UNBOUNDED) & (high < _UNBOUNDED)).reshape(-1)
            low, high = (np.where(bounded, x.reshape(-1), 0.0) for x in (low, high))
            centre, scale, outputs = (low + high) / 2, (high - low) / 2, low.size
        else:
            counts: Any = getattr(action_space, "nvec", None)
            if isinstance(action_space, gym.spaces.Discrete):
                counts = action_space.n
            self._choices = [int(n) for n in np.ravel(counts)]
            outputs = sum(self._choices)
        self.widths = [len(mean), *hidden, outputs]
        self.size = sum((n + 1) * m for n, m in itertools.pairwise(self.widths))
        for name, values in (("mean", mean), ("std", std), ("centre", centre), ("scale", scale)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self.register_buffer("weights", torch.zeros(self.size))

    def forward(self, observation: Tensor) -> Tensor:
        """Return raw actions (B, *shape) for raw observations (B, ...)."""
        return self.act(self.weights.unsqueeze(0), observation.float().unsqueeze(0))[0]

    def act(self, weights: Tensor, observation: Tensor) -> Tensor:
        """Return raw actions (M, K, *shape) of M parameter vectors.

        Args:
            weights: (M, P).
            observation: (M, K, ...) raw observations.
        """
        x = ((observation.flatten(2) - self.mean) / self.std).clamp(-_CLIP, _CLIP)
        start, last = 0, len(self.widths) - 2
        for index, (n, m) in enumerate(itertools.pairwise(self.widths)):
            matrix = weights[:, start : start + n * m].view(-1, n, m)
            bias = weights[:, start + n * m : start + (n + 1) * m].unsqueeze(1)
            x = torch.baddbmm(bias, x, matrix)
            x = x if index == last else x.tanh()
            start += (n + 1) * m
        return self._raw(x)

    def _raw(self, outputs: Tensor) -> Tensor:
        """Return raw actions (..., *shape) of outputs (..., D)."""
        space = self.action_space
        if isinstance(space, gym.spaces.Box):
            action = torch.where(self.scale > 0, self.centre + self.scale * outputs.tanh(), outputs)
            action = action.unflatten(-1, space.shape) if space.shape else action.squeeze(-1)
            return action if is_float(space) else action.round().long()
        chosen = torch.stack([part.argmax(-1) for part in outputs.split(self._choices, -1)], -1)
        start = torch.as_tensor(space.start, device=chosen.device)  # type: ignore[attr-defined]
        if isinstance(space, gym.spaces.Discrete):
            return chosen.squeeze(-1) + start
        return chosen.unflatten(-1, space.shape) + start

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], Any]:
        """Return the action of an observation (...) or the actions of a batch (B, ...).

        A controller is deterministic. It acts as a learner does: choices are counted from 0.
        """
        array = torch.as_tensor(np.asarray(observation), dtype=torch.float32)
        single = array.numel() == len(self.mean) and not self._is_batch(array)
        batch = array.reshape(1, 1 if single else len(array), -1).to(self.mean.device)
        actions = self.act(self.weights.unsqueeze(0), batch)[0].cpu().numpy()
        space = self.action_space
        if isinstance(space, gym.spaces.Discrete):
            actions = actions - int(space.start)
        elif isinstance(space, gym.spaces.MultiDiscrete):
            actions = actions - space.start
            actions = actions.reshape(len(actions), -1)
        return (actions[0] if single else actions), state

    @staticmethod
    def _is_batch(array: Tensor) -> bool:
        return array.ndim > 1 and len(array) == 1
