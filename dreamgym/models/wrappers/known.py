"""Known rewards and terminations: wrappers, and the functions of common environments.

The known functions, by the id of their environment, are written after Gymnasium's own source, for
torch and batched, in the real environment's units and with the environment's default arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamgym._settings import nearest
from dreamgym.models.base import Decodes, Prediction, State, WorldModel, model_device, zero_action
from dreamgym.models.spec import ModelSpec
from dreamgym.models.wrappers.base import Wrapper

Function = Callable[[Any, Tensor, Any], Tensor]
"""(observation, action, next observation), each (B, ...), to (B,); observations may be dicts."""


class Known(NamedTuple):
    """A known function, and the widths of observations that it can read.

    Attributes:
        function: the function.
        widths: widths of the observations that it can read.
        advice: what to do if a model's observations have another width.
    """

    function: Function
    widths: tuple[int, ...]
    advice: str = "fit the world to the environment without wrappers that change its observations"


def never(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Return zeros (B,): no observation is terminal."""
    return torch.zeros(len(following), device=following.device)


def cart_pole_reward(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Return one for every step, including the last."""
    return torch.ones(len(following), device=following.device)


def cart_pole_termination(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Return whether the cart is more than 2.4 from the centre, or the pole beyond 12 degrees."""
    return (following[:, 0].abs() > 2.4) | (following[:, 2].abs() > 12 * 2 * math.pi / 360)


def pendulum_reward(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Return -(angle^2 + 0.1 speed^2 + 0.001 torque^2)."""
    angle = torch.atan2(observation[:, 1], observation[:, 0])
    torque = action[:, 0].clamp(-2.0, 2.0)
    return -(angle**2 + 0.1 * observation[:, 2] ** 2 + 0.001 * torque**2)


def hopper_unhealthy(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Return whether height <= 0.7, |tilt| >= 0.2, or any other number has magnitude >= 100."""
    z, angle, others = _torso(following, with_x=12)
    healthy = (z > 0.7) & (angle.abs() < 0.2) & (others.abs() < 100).all(-1)
    return ~healthy


def walker_unhealthy(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Return whether the height is outside (0.8, 2), or |tilt| >= 1."""
    z, angle, _ = _torso(following, with_x=18)
    return ~((z > 0.8) & (z < 2.0) & (angle.abs() < 1.0))


def hopper_reward(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Return speed along x, plus one while healthy, minus the control cost."""
    alive = (~hopper_unhealthy(observation, action, following)).float()
    return _speed(observation, following, 0.008) + alive - _control_cost(action, 1e-3)


def walker_reward(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Return speed along x, plus one while healthy, minus the control cost."""
    alive = (~walker_unhealthy(observation, action, following)).float()
    return _speed(observation, following, 0.008) + alive - _control_cost(action, 1e-3)


def half_cheetah_reward(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Return speed along x minus the control cost."""
    return _speed(observation, following, 0.05) - _control_cost(action, 0.1)


def _torso(observation: Tensor, with_x: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return height, tilt, and all numbers from the tilt onwards; x comes first if observed."""
    first = 1 if observation.shape[-1] == with_x else 0
    return observation[:, first], observation[:, first + 1], observation[:, first + 1 :]


def _speed(observation: Tensor, following: Tensor, seconds: float) -> Tensor:
    """Return the speed along x, (B,)."""
    return (following[:, 0] - observation[:, 0]) / seconds


def _control_cost(action: Tensor, weight: float) -> Tensor:
    """Return the control cost, (B,)."""
    return weight * action.square().sum(-1)


_SHOW_X = (
    "the reward is the distance moved along x, so x must be observed: record with "
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


PROBE_ROWS = 2
"""Rows on which a user's function is tried at construction."""


@dataclass(frozen=True, kw_only=True)
class KnownRewardConfig:
    """Config of a known reward.

    Attributes:
        inner: the model inside.
        function: id of an environment with a known reward (`dreamgym.models.wrappers.REWARDS`),
            or a function of (observation, action, next observation), each (B, ...) in the real
            environment's units, that returns (B,). A world with a Python function cannot be saved.
    """

    inner: ModelSpec
    function: str | Function


class KnownReward(Wrapper):
    """The reward is computed from the dreamt observations instead of predicted.

    Nothing else changes. Dreams that leave the data still end (`end_outside_data`), but with the
    known reward instead of the worst return. Known rewards by name do not hold under a frame skip,
    where a reward is the sum over several environment steps.

    Args:
        inner: a model that decodes observations.
        function: see `KnownRewardConfig`.

    Raises:
        TypeError: the model does not decode.
        ValueError: an unknown name, or a function that does not fit the model.
    """

    config_type = KnownRewardConfig
    config: KnownRewardConfig

    def __init__(self, inner: WorldModel, function: str | Function) -> None:
        super().__init__(inner, KnownRewardConfig(inner=ModelSpec.of(inner), function=function))
        self.function = _resolve(self, function, REWARDS)

    @property
    def assumes_single_env_steps(self) -> bool:
        """See `WorldModel.assumes_single_env_steps`; true for known rewards by name."""
        return isinstance(self.config.function, str) or super().assumes_single_env_steps

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """Replace the reward."""
        reward = self.function(self.decode(state), action, self.decode(following))
        return prediction._replace(reward=reward.float())


@dataclass(frozen=True, kw_only=True)
class KnownTerminationConfig:
    """Config of a known termination.

    Attributes:
        inner: the model inside.
        function: as in `KnownRewardConfig`, with ids from `dreamgym.models.wrappers.TERMINATIONS`;
            returns (B,) bools or probabilities.
    """

    inner: ModelSpec
    function: str | Function


class KnownTermination(Wrapper):
    """The termination is computed from the dreamt observations instead of predicted.

    Nothing else changes. Dreams that leave the data therefore do not end there, and receive the
    worst return as reward in every step outside (`end_outside_data`).

    Args:
        inner: a model that decodes observations.
        function: see `KnownTerminationConfig`.

    Raises:
        TypeError: the model does not decode.
        ValueError: an unknown name, or a function that does not fit the model.
    """

    config_type = KnownTerminationConfig
    config: KnownTerminationConfig

    def __init__(self, inner: WorldModel, function: str | Function) -> None:
        config = KnownTerminationConfig(inner=ModelSpec.of(inner), function=function)
        super().__init__(inner, config)
        self.function = _resolve(self, function, TERMINATIONS)

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """Replace the termination probability."""
        terminated = self.function(self.decode(state), action, self.decode(following))
        return prediction._replace(termination=terminated.float())


def _resolve(model: Wrapper, function: str | Function, table: Mapping[str, Known]) -> Function:
    """Look up a function by name, or check a user's function on a state of the model."""
    wrapper = type(model).__name__
    if not isinstance(model, Decodes):
        raise TypeError(
            f"{wrapper} needs observations, which {type(model.inner).__name__} does not decode; "
            "use a family with a decoder, or GoalReward, which needs features only"
        )
    space = model.observation_space
    if isinstance(function, str):
        if function not in table:
            raise ValueError(f"no known function {function!r}: {nearest(function, table)}")
        known = table[function]
        if space.shape not in [(width,) for width in known.widths]:
            raise ValueError(
                f"{function!r} reads observations of {' or '.join(map(str, known.widths))} "
                f"numbers, got a model of {space}; {known.advice}"
            )
        return known.function
    device = model_device(model)
    with torch.no_grad():
        observation = model.decode(model.initial(PROBE_ROWS))
        action = zero_action(model.action_space, PROBE_ROWS, device)
        values = function(observation, action, observation)
    if not isinstance(values, Tensor) or values.shape != (PROBE_ROWS,):
        what = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"the function of {wrapper} gives {what} for {PROBE_ROWS} rows; return a tensor of "
            f"shape ({PROBE_ROWS},): one number for each row, computed with torch"
        )
    return function
