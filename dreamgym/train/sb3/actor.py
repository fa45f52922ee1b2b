"""The deterministic actor of a policy of Stable-Baselines3, as one module on tensors."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from dreamgym.data.spaces import is_float
from dreamgym.train.policy import TrainedPolicy


class Actor(nn.Module):
    """What `predict(deterministic=True)` does, without NumPy, so that it can be exported.

    Args:
        network: the policy.
        action_space: action space of the environment.
    """

    low: Tensor
    high: Tensor

    def __init__(self, network: BasePolicy, action_space: gym.Space[Any]) -> None:
        super().__init__()
        self.network, self.action_space = network, action_space
        space = network.action_space
        if isinstance(space, gym.spaces.Box):
            for name in ("low", "high"):
                self.register_buffer(name, torch.tensor(getattr(space, name)))

    def forward(self, observation: Tensor) -> Tensor:
        """Return raw actions (B, *shape) for raw observations (B, ...)."""
        chosen = self.network._predict(observation, deterministic=True)
        space = self.action_space
        if not isinstance(space, gym.spaces.Box):
            start = torch.as_tensor(getattr(space, "start", 0), device=chosen.device)
            return chosen.reshape(len(observation), *(space.shape or ())).long() + start
        action = chosen.reshape(len(observation), *space.shape)
        if self.network.squash_output:
            action = self.low + 0.5 * (action + 1.0) * (self.high - self.low)
        else:
            action = torch.clamp(action, self.low, self.high)
        return action if is_float(space) else action.round().long()


def actor(policy: TrainedPolicy) -> nn.Module:
    """See `LearnerLibrary.actor`."""
    return Actor(policy.network, policy.action_space).eval()
