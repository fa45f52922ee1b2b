"""STORM: a causal transformer over categorical latents."""

from __future__ import annotations

from dreamgym.models.storm.config import STORMConfig, STORMObjective
from dreamgym.models.storm.model import STORM

__all__ = ["STORM", "STORMConfig", "STORMObjective"]
