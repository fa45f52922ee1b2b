"""V-JEPA 2-AC: an action-conditioned predictor of the patches of a frozen V-JEPA 2."""

from __future__ import annotations

from dreamgym.models.patches.fast import FastPatchModel
from dreamgym.models.vjepa2_ac.config import VJEPA2ACConfig
from dreamgym.models.vjepa2_ac.model import VJEPA2AC
from dreamgym.models.vjepa2_ac.published import load_vjepa2_ac

VJEPA2AC.fast_form = FastPatchModel

__all__ = ["VJEPA2AC", "VJEPA2ACConfig", "load_vjepa2_ac"]
