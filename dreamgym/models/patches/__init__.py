"""What the families share that predict the patches of a frozen vision model."""

from __future__ import annotations

from dreamgym.models.patches.config import PatchConfig, PatchObjective
from dreamgym.models.patches.patch_model import Entry, PatchModel, Transitions
from dreamgym.models.patches.senses import Normalisation, PatchSenses

__all__ = [
    "Entry",
    "Normalisation",
    "PatchConfig",
    "PatchModel",
    "PatchObjective",
    "PatchSenses",
    "Transitions",
]
