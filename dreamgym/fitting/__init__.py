"""The training loop: fit a world to a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names
from dreamgym.errors import CheckpointError, FitError

if TYPE_CHECKING:
    from dreamgym.fitting.config import FitConfig as FitConfig
    from dreamgym.fitting.config import OptimizerConfig as OptimizerConfig
    from dreamgym.fitting.config import default_config as default_config
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

# The command line reads the configs without torch; it is imported with a fit.
__getattr__ = lazy_names(
    __name__,
    {
        "config": ["FitConfig", "OptimizerConfig", "default_config", "recommended"],
        "importing": ["from_lewm", "from_model"],
        "loop": ["fit"],
    },
)
