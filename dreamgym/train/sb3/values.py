"""The value function of a policy of Stable-Baselines3."""

from __future__ import annotations

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from dreamgym.errors import TrainingError
from dreamgym.train.policy import TrainedPolicy


def values(policy: TrainedPolicy, observation: Tensor) -> Tensor:
    """Return the values (B,) of observations (B, ...), in the units that the learner saw.

    Args:
        policy: a policy of PPO or A2C (state values), SAC or TD3 (the lower one of its critics at
            its own action), or DQN (its highest action value).
        observation: (B, ...) raw observations of the policy's view.

    Raises:
        TrainingError: the policy has no such function.
    """
    network = policy.network
    observation = observation.float()
    if isinstance(network, ActorCriticPolicy):
        return network.predict_values(observation).squeeze(-1)
    if hasattr(network, "q_net"):
        highest: Tensor = network.q_net(observation).max(-1).values
        return highest
    if hasattr(network, "actor") and hasattr(network, "critic"):
        critics = network.critic(observation, network.actor(observation, deterministic=True))
        return torch.cat(critics, -1).min(-1).values
    raise TrainingError(
        f"{type(network).__name__} has no value function that is known; use a policy of PPO, A2C, "
        "SAC, TD3 or DQN"
    )
