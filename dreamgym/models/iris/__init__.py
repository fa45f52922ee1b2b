"""IRIS: a transformer over the tokens of frames."""

from __future__ import annotations

from dreamgym.models.iris.config import (
    IRISConfig,
    QuantiserConfig,
    TokenObjective,
    TransformerConfig,
)
from dreamgym.models.iris.fast import FastTokenModel
from dreamgym.models.iris.model import IRIS

IRIS.fast_form = FastTokenModel

__all__ = ["IRIS", "IRISConfig", "QuantiserConfig", "TokenObjective", "TransformerConfig"]
