"""Rewards changed by the uncertainty: pessimistic ones to be safe, optimistic ones to explore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dreamgym._settings import check_at_least
from dreamgym.models.base import Prediction, State, WorldModel
from dreamgym.models.spec import ModelSpec
from dreamgym.models.wrappers.base import Wrapper


@dataclass(frozen=True, kw_only=True)
class UncertaintyConfig:
    """Config of a reward that the uncertainty changes.

    Attributes:
        inner: the model inside.
        weight: penalty or bonus for each unit of uncertainty, >= 0.
    """

    inner: ModelSpec
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, 0, "weight")


@dataclass(frozen=True, kw_only=True)
class PessimisticConfig(UncertaintyConfig):
    """Config of a pessimistic reward; `weight` is the penalty (lambda)."""


@dataclass(frozen=True, kw_only=True)
class OptimisticConfig(UncertaintyConfig):
    """Config of an optimistic reward; `weight` is the bonus."""


class _UncertaintyReward(Wrapper):
    """The reward plus `sign` times a weight times the uncertainty, which stays as it is."""

    config: UncertaintyConfig
    sign: ClassVar[float]

    def __init__(self, inner: WorldModel, *, weight: float = 1.0) -> None:
        spec = ModelSpec.of(inner)
        if not inner.has_uncertainty:
            raise TypeError(
                f"{type(inner).__name__} has no uncertainty, which is to change the reward; fit "
                "the family 'pets', or an 'ensemble' of any family"
            )
        super().__init__(inner, self.config_type(inner=spec, weight=weight))

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """Add the bonus to the reward, or subtract the penalty."""
        change = self.sign * self.config.weight * prediction.uncertainty
        return prediction._replace(reward=prediction.reward + change)


class Pessimistic(_UncertaintyReward):
    """The reward minus lambda times the uncertainty, as in MOPO.

    Yu et al. 2020, arXiv 2005.13239, equation 4.

    Args:
        inner: a model whose predictions carry an uncertainty.
        weight: penalty for each unit of uncertainty (lambda).

    Raises:
        TypeError: the model has no uncertainty.
        ValueError: a negative weight.
    """

    config_type = PessimisticConfig
    sign = -1.0


class Optimistic(_UncertaintyReward):
    """The reward plus a weight times the uncertainty: a policy goes where the model is unsure.

    With an ensemble the uncertainty is the disagreement of its members, the bonus of Sekar et al.
    2020 (Plan2Explore, arXiv 2005.05960, section 3.2), here beside the task's own reward.

    Args:
        inner: a model whose predictions carry an uncertainty.
        weight: bonus for each unit of uncertainty.

    Raises:
        TypeError: the model has no uncertainty.
        ValueError: a negative weight.
    """

    config_type = OptimisticConfig
    sign = 1.0
