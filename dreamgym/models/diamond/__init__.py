"""DIAMOND: a diffusion model of the next frame."""

from __future__ import annotations

from dreamgym.models.diamond.config import DIAMONDConfig, DIAMONDObjective, DiffusionConfig
from dreamgym.models.diamond.model import DIAMOND

__all__ = ["DIAMOND", "DIAMONDConfig", "DIAMONDObjective", "DiffusionConfig"]
