"""The training loop: a dataset into a world."""

from __future__ import annotations

from dreamgym.errors import CheckpointError, FitError
from dreamgym.fitting.config import FitConfig, OptimizerConfig, default_config
from dreamgym.fitting.importing import from_lewm, from_model
from dreamgym.fitting.loop import fit

__all__ = [
    "CheckpointError",
    "FitConfig",
    "FitError",
    "OptimizerConfig",
    "default_config",
    "fit",
    "from_lewm",
    "from_model",
]
