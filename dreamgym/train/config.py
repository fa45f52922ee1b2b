"""Settings for training a policy in a dream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dreamgym._settings import check_choice
from dreamgym.errors import TrainingError

RESPONSES = ("warn", "penalise", "truncate", "stop")
"""What may follow an alarm, see `dreamgym.dream.watch`."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `train_policy`; None means the default of the algorithm or of the world.

    The command line's options are generated from these fields and their descriptions.

    Attributes:
        num_envs: copies of the dream that run side by side.
        n_steps: steps of every copy between two updates (on-policy algorithms).
        batch_size: rows of one gradient step.
        n_epochs: passes over the collected steps in one update (PPO).
        gamma: discount factor.
        gae_lambda: lambda of generalised advantage estimation (on-policy algorithms).
        learning_rate: learning rate of the optimizer; A2C's, DQN's and QRDQN's falls to zero.
        net_arch: widths of the hidden layers of policy and value function.
        reward_scale: factor on the rewards that the learner sees; by default one over the root
            mean square of a random policy's discounted returns in the dream.
        view: what the policy sees, "observation" or "latent"; by default the
            observation where it is one vector, else "latent".
        horizon: steps after which a dream is truncated.
        starts: where dreams start: "bank" (half of them starts of episodes, half from anywhere in
            them), "episode_starts" or "anywhere", or the path of a dataset.
        real_share: share of real transitions in every batch of an off-policy algorithm; MBPO's is
            0.05. Needs `real_data`.
        temperature: temperature of the dream; above 1 it is more uncertain than the model.
        alarms: what follows where a dream leaves what the world's data has shown: "warn" says so on
            the policy's card, "penalise" also gives such steps the lowest reward of the data,
            "truncate" ends their episodes, "stop" ends the training; "off" does not look.
        device: device of the dream and of the learner.
        threads: torch's threads inside an operation while training on a CPU.
        learner: further keyword arguments of the algorithm's class, JSON-plain values.
    """

    num_envs: int | None = None
    n_steps: int | None = None
    batch_size: int | None = None
    n_epochs: int | None = None
    gamma: float | None = None
    gae_lambda: float | None = None
    learning_rate: float | None = None
    net_arch: tuple[int, ...] = (64, 64)
    reward_scale: float | None = None
    view: Literal["observation", "latent"] | None = None
    horizon: int | None = None
    starts: str = "bank"
    real_share: float = 0.0
    temperature: float = 1.0
    alarms: Literal["warn", "penalise", "truncate", "stop", "off"] = "warn"
    device: str = "cpu"
    threads: int = 1
    learner: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_envs", "n_steps", "batch_size", "n_epochs", "horizon", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name} is {value}; expected a whole number of at least 1")
        for name in ("learning_rate", "reward_scale", "temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TrainingError(f"{name} is {value}; expected a number above 0")
        try:
            check_choice("alarms", self.alarms, (*RESPONSES, "off"))
        except ValueError as error:
            raise TrainingError(str(error)) from None
        for name in ("gamma", "gae_lambda"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise TrainingError(f"{name} is {value}; expected a number between 0 and 1")
        if not 0 <= self.real_share < 1:
            raise TrainingError(
                f"real_share is {self.real_share}; expected a number from 0 to below 1"
            )
