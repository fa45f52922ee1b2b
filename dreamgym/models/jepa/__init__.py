"""JEPA: joint-embedding predictive world models, such as LeWM and PLDM."""

from __future__ import annotations

from dreamgym.models.jepa.config import JEPAConfig, JEPAObjective
from dreamgym.models.jepa.fast import FastJEPA
from dreamgym.models.jepa.lewm import LeWMStatistics, load_lewm
from dreamgym.models.jepa.model import JEPA
from dreamgym.models.jepa.modules import IMAGENET_MEAN, IMAGENET_STD

JEPA.fast_form = FastJEPA

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "JEPA",
    "JEPAConfig",
    "JEPAObjective",
    "LeWMStatistics",
    "load_lewm",
]
