"""Make a model of a published Cosmos 3, without a fit."""

from __future__ import annotations

import gymnasium as gym
import torch

from dreamgym.models.cosmos3.config import Cosmos3Config
from dreamgym.models.cosmos3.model import Cosmos3
from dreamgym.models.nn.reward_head import silence_heads


def load_cosmos3(
    observation_space: gym.Space, action_space: gym.Space, config: Cosmos3Config
) -> Cosmos3:
    """Load a published pipeline; `dreamgym.from_model` makes a world of it.

    The pipeline has no rewards and terminations: dreams have zeros and do not end, until a fit that
    continues from the model, with `refit_normalisers=True`, has trained the heads. Or give it a
    goal (`GoalReward`), or functions of the frames before and after a block (`KnownReward`,
    `KnownTermination`).

    Args:
        observation_space: Box of colour images.
        action_space: Box of the k x D numbers of a block of k actions.
        config: which pipeline, by name or folder, and its inputs.

    Returns:
        The model in eval mode.

    Raises:
        PretrainedError: the pipeline cannot be loaded.
        TypeError: a space cannot be modelled.
        ValueError: images have another size than the pipeline takes, or it has no such domain, tier
            or view.
    """
    with torch.random.fork_rng(devices=[]):
        model = Cosmos3(observation_space, action_space, config)
    silence_heads(model.reward, model.termination)
    return model.eval().requires_grad_(False)
