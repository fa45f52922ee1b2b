"""The tables of planners and of published settings."""

from __future__ import annotations

from typing import Any

from dreamgym._settings import nearest
from dreamgym.errors import TrainingError
from dreamgym.models import Acts, Values, WorldModel
from dreamgym.train.planners.base import Planner, PlannerConfig
from dreamgym.train.planners.categorical_cem import CategoricalCEM
from dreamgym.train.planners.cem import CEM, CEMConfig
from dreamgym.train.planners.gradient import Gradient
from dreamgym.train.planners.icem import ICEM, ICEMConfig
from dreamgym.train.planners.mppi import MPPI, MPPIConfig

PLANNERS: dict[str, type[Planner]] = {
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "gradient": Gradient,
    "categorical-cem": CategoricalCEM,
}
"""Planners by name."""

PLANNER_PRESETS: dict[str, PlannerConfig] = {
    # arXiv 1811.04551, appendix A: no warm start
    "planet": CEMConfig(
        horizon=12, candidates=1000, iterations=10, elites=100, std=1.0, warm_start=False
    ),
    # arXiv 1805.12114, with mbrl-lib's numbers for CartPole
    "pets": CEMConfig(
        horizon=15,
        candidates=350,
        iterations=5,
        elites=35,
        smoothing=0.1,
        truncate=True,
        particles=20,
    ),
    "icem-paper": ICEMConfig(),  # arXiv 2008.06389
    # arXiv 2603.19312: blocks of 5 actions, all of a plan are taken
    "lewm": CEMConfig(
        horizon=5, candidates=300, iterations=30, elites=30, std=1.0, terminal_only=True, execute=5
    ),
    # arXiv 2310.16828; its inverse temperature is 0.5
    "td-mpc2": MPPIConfig(
        horizon=3,
        discount=0.99,
        candidates=488,
        iterations=6,
        elites=64,
        temperature=2.0,
        std=2.0,
        min_std=0.05,
    ),
}
"""Published settings by name. A preset of a bounded action has the range [-1, 1]."""


def planner_config(planner: str | PlannerConfig) -> PlannerConfig:
    """Return the settings that name a planner.

    Args:
        planner: name of a planner or of a preset, or a config, which is returned.

    Raises:
        TrainingError: there is no planner of that name; the message has the nearest one.
    """
    if not isinstance(planner, str):
        return planner
    if planner in PLANNER_PRESETS:
        return PLANNER_PRESETS[planner]
    if planner in PLANNERS:
        return PLANNERS[planner].config_type()
    known = [*PLANNERS, *PLANNER_PRESETS]
    raise TrainingError(f"there is no planner {planner!r}; {nearest(planner, known)}")


def make_planner(
    model: WorldModel,
    planner: str | PlannerConfig,
    *,
    value: Values | None = None,
    proposal: Acts | None = None,
) -> Planner:
    """Make a planner.

    Args:
        model: world model, on its device.
        planner: name of a planner or of a preset, or a config.
        value: values the last states of a plan; None for no value.
        proposal: proposes candidates; None for none.

    Raises:
        TrainingError: there is no planner of that name; the message has the nearest one.
        TypeError: the planner cannot search the model's action space.
        ValueError: the preset scores the value of the last state only, and there is none.
    """
    config: Any = planner_config(planner)
    for kind in PLANNERS.values():
        if type(config) is kind.config_type:
            return kind(model, config, value=value, proposal=proposal)
    raise TrainingError(
        f"{config!r} is not the config of a planner; give a name ({', '.join(PLANNERS)}) or one of "
        "their configs, such as CEMConfig"
    )
