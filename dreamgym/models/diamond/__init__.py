"""DIAMOND: a diffusion model of the next frame."""

from __future__ import annotations

from dreamgym.models.diamond.config import DIAMONDConfig, DIAMONDObjective, DiffusionConfig
from dreamgym.models.diamond.fast import FastDIAMOND
from dreamgym.models.diamond.model import DIAMOND
from dreamgym.models.diamond.published import load_diamond

DIAMOND.fast_form = FastDIAMOND

__all__ = ["DIAMOND", "DIAMONDConfig", "DIAMONDObjective", "DiffusionConfig", "load_diamond"]
