"""Genie: latent actions from video, and a transformer that draws the tokens of the next frame."""

from __future__ import annotations

from dreamgym.models.genie.config import GenieConfig, GenieObjective
from dreamgym.models.genie.model import Genie
from dreamgym.models.kept_keys import KeptKeys

Genie.fast_form = KeptKeys

__all__ = ["Genie", "GenieConfig", "GenieObjective"]
