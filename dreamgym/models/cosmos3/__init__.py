"""Cosmos 3: a published video model that predicts a block of frames from a block of actions."""

from __future__ import annotations

from dreamgym.models.cosmos3.config import Cosmos3Config
from dreamgym.models.cosmos3.model import Cosmos3
from dreamgym.models.cosmos3.published import load_cosmos3

__all__ = ["Cosmos3", "Cosmos3Config", "load_cosmos3"]
