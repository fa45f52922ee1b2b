"""Optimistic rewards: a bonus for uncertainty, for policies that explore."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dreamgym._settings import check_at_least
from dreamgym.models.base import Prediction, State, WorldModel
from dreamgym.models.spec import ModelSpec
from dreamgym.models.wrappers.base import Wrapper


@dataclass(frozen=True, kw_only=True)
class OptimisticConfig:
    """Config of an optimistic reward.

    Attributes:
        inner: the model inside.
        weight: bonus for each unit of uncertainty, >= 0.
    """

    inner: ModelSpec
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, 0, "weight")


class Optimistic(Wrapper):
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
    config: OptimisticConfig

    def __init__(self, inner: WorldModel, *, weight: float = 1.0) -> None:
        spec = ModelSpec.of(inner)
        if not inner.has_uncertainty:
            raise TypeError(
                f"{type(inner).__name__} has no uncertainty, so there is nothing to add to the "
                "reward; fit the family 'pets', or an 'ensemble' of any family"
            )
        super().__init__(inner, OptimisticConfig(inner=spec, weight=weight))

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """Add the bonus to the reward; the uncertainty stays in the prediction."""
        bonus = self.config.weight * prediction.uncertainty
        return prediction._replace(reward=prediction.reward + bonus)
