"""World models around other world models: wrappers and ensembles."""

from __future__ import annotations

from dreamgym.models.wrappers.base import Wrapper
from dreamgym.models.wrappers.ensemble import Ensemble, EnsembleConfig
from dreamgym.models.wrappers.ensemble_fast import FastEnsemble
from dreamgym.models.wrappers.goal import GoalReward, GoalRewardConfig
from dreamgym.models.wrappers.known import (
    REWARDS,
    TERMINATIONS,
    KnownReward,
    KnownRewardConfig,
    KnownTermination,
    KnownTerminationConfig,
)
from dreamgym.models.wrappers.uncertainty import (
    Optimistic,
    OptimisticConfig,
    Pessimistic,
    PessimisticConfig,
)

Ensemble.fast_form = FastEnsemble

__all__ = [
    "REWARDS",
    "TERMINATIONS",
    "Ensemble",
    "EnsembleConfig",
    "GoalReward",
    "GoalRewardConfig",
    "KnownReward",
    "KnownRewardConfig",
    "KnownTermination",
    "KnownTerminationConfig",
    "Optimistic",
    "OptimisticConfig",
    "Pessimistic",
    "PessimisticConfig",
    "Wrapper",
]
