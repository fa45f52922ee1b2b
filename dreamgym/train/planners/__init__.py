"""Planners: search for the best actions in a world model, as policies of the real environment."""

from __future__ import annotations

from dreamgym.train.planners.base import Plan, Planner, PlannerConfig
from dreamgym.train.planners.categorical_cem import CategoricalCEM, CategoricalCEMConfig
from dreamgym.train.planners.cem import CEM, CEMConfig
from dreamgym.train.planners.gradient import Gradient, GradientConfig
from dreamgym.train.planners.icem import ICEM, ICEMConfig
from dreamgym.train.planners.mppi import MPPI, MPPIConfig
from dreamgym.train.planners.policy import PlannedPolicy
from dreamgym.train.planners.prior import PolicyPrior
from dreamgym.train.planners.registry import (
    PLANNER_PRESETS,
    PLANNERS,
    make_planner,
    planner_config,
)

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "PLANNERS",
    "PLANNER_PRESETS",
    "CEMConfig",
    "CategoricalCEM",
    "CategoricalCEMConfig",
    "Gradient",
    "GradientConfig",
    "ICEMConfig",
    "MPPIConfig",
    "Plan",
    "PlannedPolicy",
    "Planner",
    "PlannerConfig",
    "PolicyPrior",
    "make_planner",
    "planner_config",
]
