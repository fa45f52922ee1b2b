"""Dreamer 4: a block-causal transformer that denoises the next latents in a few steps."""

from __future__ import annotations

from dreamgym.models.dreamer4.config import Dreamer4Config, Dreamer4Objective
from dreamgym.models.dreamer4.model import Dreamer4
from dreamgym.models.kept_keys import KeptKeys

Dreamer4.fast_form = KeptKeys

__all__ = ["Dreamer4", "Dreamer4Config", "Dreamer4Objective"]
