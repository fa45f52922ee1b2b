"""Pessimistic rewards: a penalty for uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dreamgym._settings import check_at_least
from dreamgym.models.base import Prediction, State, WorldModel
from dreamgym.models.spec import ModelSpec
from dreamgym.models.wrappers.base import Wrapper


@dataclass(frozen=True, kw_only=True)
class PessimisticConfig:
    """Config of a pessimistic reward.

    Attributes:
        inner: the model inside.
        weight: penalty for each unit of uncertainty (lambda), >= 0.
    """

    inner: ModelSpec
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, 0, "weight")


class Pessimistic(Wrapper):
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
    config: PessimisticConfig

    def __init__(self, inner: WorldModel, *, weight: float = 1.0) -> None:
        spec = ModelSpec.of(inner)
        if not inner.has_uncertainty:
            raise TypeError(
                f"{type(inner).__name__} has no uncertainty, so there is nothing to subtract from "
                "the reward; fit the family 'pets', or an 'ensemble' of any family"
            )
        super().__init__(inner, PessimisticConfig(inner=spec, weight=weight))

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """Subtract the penalty from the reward; the uncertainty stays in the prediction."""
        penalty = self.config.weight * prediction.uncertainty
        return prediction._replace(reward=prediction.reward - penalty)
