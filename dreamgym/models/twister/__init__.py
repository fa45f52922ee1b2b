"""TWISTER: a transformer with relative positions, and a contrastive loss over several steps."""

from __future__ import annotations

from dreamgym.models.twister.config import TWISTERConfig, TWISTERObjective
from dreamgym.models.twister.fast import FastTWISTER
from dreamgym.models.twister.model import TWISTER

TWISTER.fast_form = FastTWISTER

__all__ = ["TWISTER", "TWISTERConfig", "TWISTERObjective"]
