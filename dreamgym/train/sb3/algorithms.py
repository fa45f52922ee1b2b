"""Stable-Baselines3's algorithms, and the settings that train them in a dream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dreamgym._files import nearest
from dreamgym.errors import TrainingError
from dreamgym.train.config import TrainConfig

_SETTINGS = ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One algorithm and its defaults.

    Attributes:
        learner: Stable-Baselines3's class.
        steps: dream steps of a whole training.
        num_envs: copies of the dream side by side.
        action_space: the only kind it can act in; None where it takes any.
        settings: keyword arguments of the class. Those of `TrainConfig` that are not here do not
            apply to the algorithm.
    """

    learner: type[BaseAlgorithm]
    steps: int
    num_envs: int
    action_space: type[gym.Space[Any]] | None = None
    settings: Mapping[str, Any]

    @property
    def on_policy(self) -> bool:
        """Whether it learns from fresh rollouts only."""
        return issubclass(self.learner, OnPolicyAlgorithm)


_OFF_POLICY: dict[str, Any] = {
    "batch_size": 256,
    "gamma": 0.98,
    "learning_rate": 1e-3,
    "buffer_size": 100_000,
    "learning_starts": 2_000,
    "train_freq": 1,
    "gradient_steps": 8,
}


ALGORITHMS: dict[str, Algorithm] = {
    "PPO": Algorithm(
        learner=PPO,
        steps=400_000,
        num_envs=256,
        settings={
            "n_steps": 64,
            "batch_size": 1024,
            "n_epochs": 5,
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "learning_rate": 1e-3,
        },
    ),
    "A2C": Algorithm(
        learner=A2C,
        steps=1_000_000,
        num_envs=256,
        settings={"n_steps": 16, "gamma": 0.98, "gae_lambda": 0.95, "learning_rate": 1e-3},
    ),
    "SAC": Algorithm(
        learner=SAC, steps=60_000, num_envs=16, action_space=gym.spaces.Box, settings=_OFF_POLICY
    ),
    "TD3": Algorithm(
        learner=TD3, steps=60_000, num_envs=16, action_space=gym.spaces.Box, settings=_OFF_POLICY
    ),
    "DQN": Algorithm(
        learner=DQN,
        steps=100_000,
        num_envs=16,
        action_space=gym.spaces.Discrete,
        settings={**_OFF_POLICY, "target_update_interval": 50, "exploration_fraction": 0.2},
    ),
}


def find_algorithm(name: str) -> Algorithm:
    """The algorithm of that name.

    Raises:
        TrainingError: there is none; the nearest is named.
    """
    if name not in ALGORITHMS:
        raise TrainingError(f"there is no algorithm {name!r}; {nearest(name, ALGORITHMS)}")
    return ALGORITHMS[name]


def check_action_space(name: str, space: gym.Space[Any]) -> None:
    """Refuse an algorithm that cannot act in `space`.

    Raises:
        TrainingError: naming the algorithms that can.
    """
    wanted = ALGORITHMS[name].action_space
    if wanted is None or isinstance(space, wanted):
        return
    able = [
        other
        for other, algorithm in ALGORITHMS.items()
        if algorithm.action_space is None or isinstance(space, algorithm.action_space)
    ]
    raise TrainingError(
        f"{name} acts in {wanted.__name__} action spaces only, the world's is {space}; "
        f"take one of {', '.join(able)}"
    )


def settings_for(name: str, config: TrainConfig) -> dict[str, Any]:
    """Keyword arguments of the algorithm's class: its defaults, then the config's own.

    Raises:
        TrainingError: the config sets something that the algorithm does not have.
    """
    defaults = dict(ALGORITHMS[name].settings)
    for key in _SETTINGS:
        value = getattr(config, key)
        if value is None:
            continue
        if key not in defaults:
            raise TrainingError(
                f"{key}={value} does not apply to {name}; its settings are "
                f"{', '.join(sorted(defaults))} (others go into TrainConfig(learner={{...}}))"
            )
        defaults[key] = value
    if ALGORITHMS[name].on_policy and "batch_size" in defaults and config.batch_size is None:
        collected = (config.num_envs or ALGORITHMS[name].num_envs) * defaults["n_steps"]
        defaults["batch_size"] = min(defaults["batch_size"], collected)
    return {**defaults, **config.learner}
