"""STORM: a causal transformer over categorical latents."""

from __future__ import annotations

from dreamgym.models.storm.config import STORMConfig, STORMObjective
from dreamgym.models.storm.fast import FastSTORM
from dreamgym.models.storm.model import STORM

STORM.fast_form = FastSTORM

__all__ = ["STORM", "STORMConfig", "STORMObjective"]
