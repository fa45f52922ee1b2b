"""Pessimistic, known and goal-reaching rewards, and known terminations: models around a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dreamgym.files import nearest
from dreamgym.models.base import Decodes, Prediction, State, WorldModel, zero_action
from dreamgym.models.composition import Composition
from dreamgym.models.known import REWARDS, TERMINATIONS, Function, Known
from dreamgym.models.nesting import ModelSpec

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


class Pessimistic(Composition):
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


class KnownReward(Composition):
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
    def of_single_steps(self) -> bool:
        """See `WorldModel.of_single_steps`: what is known by name."""
        return isinstance(self.config.function, str) or super().of_single_steps

    def adopt(self, other: Self) -> None:
        """See `Composition.adopt`."""
        self.function = other.function

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


class KnownTermination(Composition):
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

    def adopt(self, other: Self) -> None:
        """See `Composition.adopt`."""
        self.function = other.function

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """The probability of termination is replaced."""
        ended = self.function(self.decode(state), action, self.decode(following))
        return prediction._replace(termination=ended.float())


def _resolved(model: Composition, function: str | Function, table: Mapping[str, Known]) -> Function:
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
