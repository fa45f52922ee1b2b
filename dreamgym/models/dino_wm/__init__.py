"""DINO-WM: a predictor of the patches of a frozen DINOv2."""

from __future__ import annotations

from dreamgym.models.dino_wm.config import DINOWMConfig
from dreamgym.models.dino_wm.model import DINOWM
from dreamgym.models.patches.fast import FastPatchModel

DINOWM.fast_form = FastPatchModel

__all__ = ["DINOWM", "DINOWMConfig"]
