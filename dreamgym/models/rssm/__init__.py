"""RSSM: the world models of PlaNet and Dreamer, versions 1 to 3."""

from __future__ import annotations

from dreamgym.models.rssm.config import RSSMConfig, RSSMObjective
from dreamgym.models.rssm.fast import FastRSSM
from dreamgym.models.rssm.model import RSSM

RSSM.fast_form = FastRSSM

__all__ = ["RSSM", "RSSMConfig", "RSSMObjective"]
