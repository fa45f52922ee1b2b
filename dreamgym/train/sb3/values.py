"""The value function of a policy of Stable-Baselines3."""

from __future__ import annotations

from typing import cast

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from dreamgym.errors import TrainingError
from dreamgym.train.policy import TrainedPolicy


def values(policy: TrainedPolicy, observation: Tensor) -> Tensor:
    """Return the values (B,) of observations (B, ...), in the units that the learner saw.

    Args:
        policy: a policy of PPO, A2C or TRPO (state values), SAC, TD3, DDPG, TQC or CrossQ (the
            lowest one of its critics at its own action), or DQN or QRDQN (its highest action
            value). Of quantiles it is the mean that counts.
        observation: (B, ...) raw observations of the policy's view.

    Raises:
        TrainingError: the policy has no such function.
    """
    network = policy.network
    observation = observation.float()
    if isinstance(network, ActorCriticPolicy):
        return network.predict_values(observation).squeeze(-1)
    if hasattr(network, "q_net"):
        return cast(Tensor, network.q_net(observation)).max(-1).values
    if hasattr(network, "quantile_net"):
        return cast(Tensor, network.quantile_net(observation)).mean(1).max(-1).values
    if hasattr(network, "actor") and hasattr(network, "critic"):
        critics = network.critic(observation, network._predict(observation, deterministic=True))
        if isinstance(critics, Tensor):  # quantiles, (B, critics, quantiles)
            return critics.mean(-1).min(-1).values
        return torch.cat(critics, -1).min(-1).values
    raise TrainingError(
        f"{type(network).__name__} has no value function that is known; use a policy of PPO, A2C, "
        "TRPO, SAC, TD3, DDPG, TQC, CrossQ, DQN or QRDQN"
    )
