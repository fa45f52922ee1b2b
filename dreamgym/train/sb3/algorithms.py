"""Stable-Baselines3's algorithms, with defaults that suit dreams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dreamgym._settings import nearest
from dreamgym.data.bounds import action_bounds_findings
from dreamgym.errors import TrainingError
from dreamgym.train.config import TrainConfig

# settings that `TrainConfig` has a field for
_SETTINGS = ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One algorithm and its defaults.

    Attributes:
        learner: class in Stable-Baselines3.
        steps: dream steps of a training.
        num_envs: copies of the dream that run side by side.
        action_space: the only kind of action space that it supports; None for any.
        settings: keyword arguments of the class. Settings of `TrainConfig` that are missing here do
            not apply to the algorithm.
        network: keyword arguments of its network beside `net_arch`.
        anneal: whether the learning rate falls linearly to zero by the end of a training.
    """

    learner: type[BaseAlgorithm]
    steps: int
    num_envs: int
    action_space: type[gym.Space[Any]] | None = None
    settings: Mapping[str, Any]
    network: Mapping[str, Any] = field(default_factory=dict)
    anneal: bool = False

    @property
    def on_policy(self) -> bool:
        """Whether the algorithm is on-policy."""
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
        steps=1_000_000,
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
        # One gradient step a rollout: many short rollouts, of as many copies as are cheap.
        steps=4_000_000,
        num_envs=64,
        settings={
            "n_steps": 8,
            "gamma": 0.98,
            "gae_lambda": 0.9,
            "learning_rate": 1.4e-3,
            "normalize_advantage": True,
        },
        anneal=True,
    ),
    "SAC": Algorithm(
        learner=SAC, steps=20_000, num_envs=16, action_space=gym.spaces.Box, settings=_OFF_POLICY
    ),
    "TD3": Algorithm(
        learner=TD3, steps=20_000, num_envs=16, action_space=gym.spaces.Box, settings=_OFF_POLICY
    ),
    "DDPG": Algorithm(
        learner=DDPG,
        steps=20_000,
        num_envs=16,
        action_space=gym.spaces.Box,
        settings=_OFF_POLICY,
        network={"n_critics": 1},
    ),
    "DQN": Algorithm(
        learner=DQN,
        steps=100_000,
        num_envs=16,
        action_space=gym.spaces.Discrete,
        # With one-step targets its return rises and falls in dreams; with three it stays.
        settings={
            **_OFF_POLICY,
            "gamma": 0.99,
            "n_steps": 3,
            "target_update_interval": 1000,
            "exploration_fraction": 0.2,
        },
        anneal=True,
    ),
}


def find_algorithm(name: str) -> Algorithm:
    """Return the algorithm of that name.

    Raises:
        TrainingError: there is none; the message names the nearest one.
    """
    if name not in ALGORITHMS:
        raise TrainingError(f"there is no algorithm {name!r}; {nearest(name, ALGORITHMS)}")
    return ALGORITHMS[name]


def unsupported(name: str, space: gym.Space[Any]) -> str | None:
    """See `LearnerLibrary.unsupported`."""
    algorithm = find_algorithm(name)
    supported = algorithm.action_space
    if supported is not None and not isinstance(space, supported):
        able = [
            other
            for other, each in ALGORITHMS.items()
            if each.action_space is None or isinstance(space, each.action_space)
        ]
        return (
            f"{name} acts in {supported.__name__} action spaces only, the world's is {space}; "
            f"use one of {', '.join(able)}"
        )
    unbounded = action_bounds_findings(space)
    if unbounded:
        return unbounded[0]
    fixed = isinstance(space, gym.spaces.Box) and bool((space.low == space.high).any())
    if fixed and not algorithm.on_policy:  # it scales actions by the width of the space
        return (
            f"{name} cannot act in {space}, in which an action has a single value; use PPO or "
            "A2C, or leave that action out of the data"
        )
    return None


def settings_for(name: str, config: TrainConfig) -> dict[str, Any]:
    """Return keyword arguments of the algorithm's class: its defaults, overridden by the config.

    Raises:
        TrainingError: the config has a setting that the algorithm does not have.
    """
    algorithm = ALGORITHMS[name]
    settings = dict(algorithm.settings)
    if config.real_share and not algorithm.on_policy:
        if config.learner.get("n_steps", 1) > 1:
            raise TrainingError(
                f"real_share={config.real_share} needs targets of one step, and learner has "
                f"n_steps={config.learner['n_steps']}; leave one of them out"
            )
        settings.pop("n_steps", None)
    fields = [key for key in _SETTINGS if key in settings]
    if "n_steps" in fields and not algorithm.on_policy:
        fields.remove("n_steps")  # the steps of a target; the config's are those of a rollout
    for key in _SETTINGS:
        value = getattr(config, key)
        if value is None:
            continue
        if key not in fields:
            raise TrainingError(
                f"{key}={value} does not apply to {name}, and these do: {', '.join(fields)} "
                "(what else it takes goes into TrainConfig(learner={...}))"
            )
        settings[key] = value
    if algorithm.on_policy and "batch_size" in settings and config.batch_size is None:
        rollout = (config.num_envs or algorithm.num_envs) * settings["n_steps"]
        settings["batch_size"] = min(settings["batch_size"], rollout)
    return {**settings, **config.learner}


def settings_to_go_on(
    name: str, settings: dict[str, Any], learned: Mapping[str, float]
) -> dict[str, Any]:
    """Return settings for a training that starts from a trained policy: little is left to chance.

    Args:
        name: name of the algorithm.
        settings: see `settings_for`.
        learned: numbers that an earlier training learned, see `PolicyCard.learned`.
    """
    changed: dict[str, Any] = {}
    if not ALGORITHMS[name].on_policy:
        changed["learning_starts"] = min(settings["learning_starts"], settings["batch_size"])
    if "exploration_fraction" in settings:
        changed["exploration_initial_eps"] = settings.get("exploration_final_eps", 0.05)
    if "ent_coef" in learned:
        changed["ent_coef"] = f"auto_{learned['ent_coef']:.9g}"
    return {**settings, **changed}
