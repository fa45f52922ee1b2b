"""How a policy is trained in a dream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dreamgym.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `train_policy`; None means the algorithm's own default (`train.algorithms`).

    Attributes:
        num_envs: copies of the dream side by side.
        n_steps: steps of every copy between two updates (on-policy algorithms).
        batch_size: rows of one gradient step.
        n_epochs: passes over what was collected (PPO).
        gamma: discount.
        gae_lambda: of generalised advantage estimation (on-policy algorithms).
        learning_rate: of Adam, constant.
        net_arch: widths of the hidden layers of policy and value.
        reward_scale: rewards are multiplied by it for the learner only; None takes one over the
            spread of discounted returns of a random policy in the dream.
        view: what the policy sees, "observation" or "latent"; None is the world's default.
        horizon: steps after which a dream is truncated; None is the world's.
        temperature: of the dream.
        device: of the dream and of the learner.
        threads: torch's threads inside an operation while training on a CPU.
        learner: further keyword arguments of the learner's class, plain JSON values.
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
    temperature: float = 1.0
    device: str = "cpu"
    threads: int = 1
    learner: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_envs", "n_steps", "batch_size", "n_epochs", "horizon", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name} is {value}; wanted a whole number of at least 1")
        for name in ("learning_rate", "reward_scale", "temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TrainingError(f"{name} is {value}; wanted a number above 0")
        for name in ("gamma", "gae_lambda"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise TrainingError(f"{name} is {value}; wanted a number between 0 and 1")
