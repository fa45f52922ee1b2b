"""IRIS and Delta-IRIS: transformers over the tokens of frames, and of their changes."""

from __future__ import annotations

from dreamgym.models.iris.config import (
    DeltaIRISConfig,
    IRISConfig,
    TokenObjective,
    TransformerConfig,
)
from dreamgym.models.iris.delta import DeltaIRIS
from dreamgym.models.iris.fast import FastTokenModel
from dreamgym.models.iris.model import IRIS
from dreamgym.models.nn.quantisers import QuantiserConfig

IRIS.fast_form = DeltaIRIS.fast_form = FastTokenModel

__all__ = [
    "IRIS",
    "DeltaIRIS",
    "DeltaIRISConfig",
    "IRISConfig",
    "QuantiserConfig",
    "TokenObjective",
    "TransformerConfig",
]
