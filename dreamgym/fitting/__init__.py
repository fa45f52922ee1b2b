"""The training loop: fit a world to a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names
from dreamgym.errors import CheckpointError, FitError
from dreamgym.fitting.config import FitConfig, OptimizerConfig, default_config

if TYPE_CHECKING:
    from dreamgym.fitting.importing import from_lewm as from_lewm
    from dreamgym.fitting.importing import from_model as from_model
    from dreamgym.fitting.loop import fit as fit

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

# The settings are imported without torch, for the command line's options; the rest is not.
__getattr__ = lazy_names(__name__, {"importing": ["from_lewm", "from_model"], "loop": ["fit"]})
