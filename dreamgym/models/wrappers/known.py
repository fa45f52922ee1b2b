"""Reward and termination functions that are known, by the id of their environment.

Each is written from Gymnasium's own source, for torch and for many rows at once, in the real
environment's units, with the environment's default arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamgym._files import nearest
from dreamgym.models.base import Decodes, Prediction, State, WorldModel, zero_action
from dreamgym.models.spec import ModelSpec
from dreamgym.models.wrappers.base import Wrapper

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


PROBE_ROWS = 2

"""Rows that a user's function is tried on when it is given."""


@dataclass(frozen=True, kw_only=True)
class PessimisticConfig:
    """A pessimistic reward.

    Attributes:
        inner: the model inside.
        weight: lambda, >= 0: rewards that a unit of uncertainty costs.
    """

    inner: ModelSpec
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight={self.weight}: give a number of at least 0")


class Pessimistic(Wrapper):
    """Reward minus lambda times uncertainty: MOPO (Yu et al. 2020, arXiv 2005.13239, equation 4).

    Args:
        inner: a model whose predictions carry an uncertainty.
        weight: lambda.

    Raises:
        TypeError: the model has no uncertainty.
        ValueError: a negative weight.
    """

    config_type = PessimisticConfig
    config: PessimisticConfig

    def __init__(self, inner: WorldModel, *, weight: float = 1.0) -> None:
        spec = ModelSpec.of(inner)
        if not inner.has_uncertainty:
            raise TypeError(
                f"a {type(inner).__name__} says nothing of its uncertainty, so there is nothing to "
                "be pessimistic about; fit the family 'pets', or 'ensemble' of any family"
            )
        super().__init__(inner, PessimisticConfig(inner=spec, weight=weight))

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """The reward is lowered; the uncertainty stays to be seen."""
        penalty = self.config.weight * prediction.uncertainty
        return prediction._replace(reward=prediction.reward - penalty)


@dataclass(frozen=True, kw_only=True)
class KnownRewardConfig:
    """A known reward.

    Attributes:
        inner: the model inside.
        function: the id of an environment whose reward is known (`dreamgym.models.REWARDS`), or a
            function of (observation, action, next observation), each (B, ...) in the real
            environment's units, to (B,). A world with a Python function cannot be saved.
    """

    inner: ModelSpec
    function: str | Function


class KnownReward(Wrapper):
    """The reward is computed from the dreamt observations instead of predicted.

    Nothing else changes. A model that ends dreams which leave its data with a low reward, as the
    MDN-RNN does, ends them still, and the known reward stands there too. Under a frame skip, whose
    rewards are sums over several real steps, the names of known rewards do not hold.

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
        self.function = _resolved(self, function, REWARDS)

    @property
    def assumes_single_env_steps(self) -> bool:
        """See `WorldModel.assumes_single_env_steps`: what is known by name."""
        return isinstance(self.config.function, str) or super().assumes_single_env_steps

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """The reward is replaced."""
        reward = self.function(self.decode(state), action, self.decode(following))
        return prediction._replace(reward=reward.float())


@dataclass(frozen=True, kw_only=True)
class KnownTerminationConfig:
    """A known termination.

    Attributes:
        inner: the model inside.
        function: as in `KnownRewardConfig` (`dreamgym.models.TERMINATIONS`), to (B,) bools or
            probabilities.
    """

    inner: ModelSpec
    function: str | Function


class KnownTermination(Wrapper):
    """Whether a dream ends is computed from the dreamt observations instead of predicted.

    Nothing else changes. So it also stands where a model would end a dream that leaves its data,
    and the low reward of that end is paid in every step for as long as the dream is out there.

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
        self.function = _resolved(self, function, TERMINATIONS)

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """The probability of termination is replaced."""
        ended = self.function(self.decode(state), action, self.decode(following))
        return prediction._replace(termination=ended.float())


def _resolved(model: Wrapper, function: str | Function, table: Mapping[str, Known]) -> Function:
    """The function of a name, or the given one, tried on a state of the model."""
    kind = type(model).__name__
    if not isinstance(model, Decodes):
        raise TypeError(
            f"{kind} reads observations, which a {type(model.inner).__name__} does not decode; "
            "take a family with a decoder, or GoalReward, which reads features"
        )
    space = model.observation_space
    if isinstance(function, str):
        if function not in table:
            raise ValueError(f"no function is known as {function!r}: {nearest(function, table)}")
        known = table[function]
        if space.shape not in [(width,) for width in known.widths]:
            raise ValueError(
                f"{function!r} reads observations of {' or '.join(map(str, known.widths))} "
                f"numbers, and the model's are {space}; {known.advice}"
            )
        return known.function
    device = next(model.parameters()).device
    with torch.no_grad():
        seen = model.decode(model.initial(PROBE_ROWS))
        said = function(seen, zero_action(model.action_space, PROBE_ROWS, device), seen)
    if not isinstance(said, Tensor) or said.shape != (PROBE_ROWS,):
        what = tuple(said.shape) if isinstance(said, Tensor) else type(said).__name__
        raise ValueError(
            f"the function of {kind} gives {what} for {PROBE_ROWS} rows; give a tensor of shape "
            f"({PROBE_ROWS},): one number for each row, computed with torch"
        )
    return function
