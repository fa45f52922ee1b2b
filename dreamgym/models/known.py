"""Reward and termination functions that are known, by the id of their environment.

Each is written from Gymnasium's own source, for torch and for many rows at once, in the real
environment's units, with the environment's default arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Function = Callable[[Any, Tensor, Any], Tensor]
"""(observation, action, next observation), each (B, ...), to (B,); observations may be dicts."""


class Known(NamedTuple):
    """A function that is known for some shapes of observations.

    Attributes:
        function: what it is.
        widths: numbers in the observations that it reads.
        advice: what to do when a model's observations have another width.
    """

    function: Function
    widths: tuple[int, ...]
    advice: str = "fit the world to the environment without wrappers that change its observations"


def never(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """No observation is terminal: zeros (B,)."""
    return torch.zeros(len(following), device=following.device)


def cart_pole_reward(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """One for every step, the last one too."""
    return torch.ones(len(following), device=following.device)


def cart_pole_termination(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """The cart is beyond 2.4 of the middle, or the pole beyond 12 degrees."""
    return (following[:, 0].abs() > 2.4) | (following[:, 2].abs() > 12 * 2 * math.pi / 360)


def pendulum_reward(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Minus the angle's square, a tenth of the speed's, and a thousandth of the torque's."""
    angle = torch.atan2(observation[:, 1], observation[:, 0])
    torque = action[:, 0].clamp(-2.0, 2.0)
    return -(angle**2 + 0.1 * observation[:, 2] ** 2 + 0.001 * torque**2)


def hopper_unhealthy(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """The torso is at 0.7 or below or tilted by 0.2 or more, or a number is at 100 or beyond."""
    z, angle, others = _torso(following, with_x=12)
    healthy = (z > 0.7) & (angle.abs() < 0.2) & (others.abs() < 100).all(-1)
    return ~healthy


def walker_unhealthy(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """The torso is not between 0.8 and 2, or tilted by 1 or more."""
    z, angle, _ = _torso(following, with_x=18)
    return ~((z > 0.8) & (z < 2.0) & (angle.abs() < 1.0))


def hopper_reward(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Speed along x, plus one while healthy, less the control cost."""
    alive = (~hopper_unhealthy(observation, action, following)).float()
    return _speed(observation, following, 0.008) + alive - _effort(action, 1e-3)


def walker_reward(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Speed along x, plus one while healthy, less the control cost."""
    alive = (~walker_unhealthy(observation, action, following)).float()
    return _speed(observation, following, 0.008) + alive - _effort(action, 1e-3)


def half_cheetah_reward(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Speed along x, less the control cost."""
    return _speed(observation, following, 0.05) - _effort(action, 0.1)


def _torso(observation: Tensor, with_x: int) -> tuple[Tensor, Tensor, Tensor]:
    """Height and tilt, and all numbers from the tilt on; x comes first where it is observed."""
    first = 1 if observation.shape[-1] == with_x else 0
    return observation[:, first], observation[:, first + 1], observation[:, first + 1 :]


def _speed(observation: Tensor, following: Tensor, seconds: float) -> Tensor:
    return (following[:, 0] - observation[:, 0]) / seconds


def _effort(action: Tensor, weight: float) -> Tensor:
    return weight * action.square().sum(-1)


_SHOW_X = (
    "the reward is the way gone along x, so x must be observed: record with "
    "exclude_current_positions_from_observation=False, or let the model predict the reward"
)

REWARDS: dict[str, Known] = {
    "CartPole-v1": Known(cart_pole_reward, (4,)),
    "Pendulum-v1": Known(pendulum_reward, (3,)),
    "HalfCheetah-v5": Known(half_cheetah_reward, (18,), _SHOW_X),
    "Hopper-v5": Known(hopper_reward, (12,), _SHOW_X),
    "Walker2d-v5": Known(walker_reward, (18,), _SHOW_X),
}
"""Known rewards by the id of the environment."""

TERMINATIONS: dict[str, Known] = {
    "CartPole-v1": Known(cart_pole_termination, (4,)),
    "Pendulum-v1": Known(never, (3,)),
    "HalfCheetah-v5": Known(never, (17, 18)),
    "Hopper-v5": Known(hopper_unhealthy, (11, 12)),
    "Walker2d-v5": Known(walker_unhealthy, (17, 18)),
}
"""Known terminations by the id of the environment."""
