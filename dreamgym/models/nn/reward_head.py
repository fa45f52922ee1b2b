"""The head that predicts rewards."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from dreamgym.models.nn.distributions import TwoHot
from dreamgym.models.nn.objective import SIGNS, RewardObjective

SMALLEST_TWO_HOT_STD = 0.01
"""Rewards with a smaller spread are divided by it before the two-hot encoding, whose bins are 0.17
apart around zero. Other rewards are encoded as they are, as published."""

NEVER = -30.0
"""Logit of terminations of a model without a head for them."""


class RewardHead(nn.Module):
    """Predicts the expected reward, in the units of the objective.

    Args:
        net: network from features to `objective.reward_outputs` outputs. Its last layer is linear;
            it starts at zero if rewards are two-hot.
        objective: units of the rewards.

    Attributes:
        mean: () mean reward of the training data.
        std: () standard deviation of the rewards.
        two_hot_unit: () divides rewards before the two-hot encoding.
    """

    mean: Tensor
    std: Tensor
    two_hot_unit: Tensor

    def __init__(self, net: nn.Sequential, objective: RewardObjective) -> None:
        super().__init__()
        self.units, self.is_two_hot = objective.rewards, objective.is_two_hot
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("two_hot_unit", torch.ones(()))
        if self.units == "sign":
            self.two_hot = TwoHot(SIGNS, limit=math.log(2))  # bins at -1, 0 and 1
        else:
            self.two_hot = TwoHot(objective.bins, in_symlog=self.units == "symlog-two-hot")
        self.net = net
        if self.is_two_hot:
            # As published: an unfitted head predicts a reward of zero.
            for parameter in self.net[-1].parameters():
                nn.init.zeros_(parameter)

    def set_moments(self, mean: Tensor, std: Tensor) -> None:
        """Fit to the mean () and standard deviation () of the rewards."""
        self.mean.copy_(mean)
        self.std.copy_(std)
        if self.units != "sign":
            self.two_hot_unit.copy_(torch.where(std < SMALLEST_TWO_HOT_STD, std, 1.0))

    def predict(self, features: Tensor) -> Tensor:
        """Return the reward (...) in the real environment's units."""
        return self.expected(self.net(features))

    def expected(self, outputs: Tensor) -> Tensor:
        """Return the reward (...) for outputs (..., bins or 1) of the network."""
        if self.is_two_hot:
            return self.two_hot.mean(outputs) * self.two_hot_unit
        reward = outputs.squeeze(-1)
        return reward * self.std + self.mean if self.units == "standard" else reward

    def loss(self, features: Tensor, reward: Tensor) -> Tensor:
        """Return the cross-entropy with the two-hot reward, or the squared error; (...)."""
        outputs = self.net(features)
        if self.units == "sign":
            reward = reward.sign()
        if self.is_two_hot:
            return self.two_hot.loss(outputs, reward / self.two_hot_unit)
        target = (reward - self.mean) / self.std if self.units == "standard" else reward
        return (outputs.squeeze(-1) - target).square()


@torch.no_grad()
def silence_heads(reward: RewardHead, termination: nn.Sequential) -> None:
    """Set rewards to zero and terminations to never, for weights that were published without heads.

    Args:
        reward: head whose moments are not fitted yet.
        termination: network with one output, a logit.
    """
    for layers, bias in ((reward.net, 0.0), (termination, NEVER)):
        last = cast(nn.Linear, layers[-1])
        last.weight.zero_()
        last.bias.fill_(bias)
