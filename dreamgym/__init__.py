"""dreamgym: world models learned from logged data, given back as Gymnasium environments.

Importing it registers the ids `dreamgym/...`; torch is imported when something is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dreamgym.dream.registration import register_worlds

if TYPE_CHECKING:
    from dreamgym.adopting import from_lewm as from_lewm
    from dreamgym.adopting import from_model as from_model
    from dreamgym.data import Dataset as Dataset
    from dreamgym.data import check as check
    from dreamgym.data import record as record
    from dreamgym.dream.vector import DreamVectorEnv as DreamVectorEnv
    from dreamgym.fit_config import FitConfig as FitConfig
    from dreamgym.fit_config import OptimizerConfig as OptimizerConfig
    from dreamgym.fit_config import recommended as recommended
    from dreamgym.fitting import fit as fit
    from dreamgym.train.sb3 import train_policy as train_policy
    from dreamgym.transfer import evaluate as evaluate
    from dreamgym.transfer import transfer_policy as transfer_policy
    from dreamgym.world import World as World
    from dreamgym.world import load as load

__version__ = "0.1.0"

_HOMES = {
    "Dataset": "dreamgym.data",
    "DreamVectorEnv": "dreamgym.dream.vector",
    "FitConfig": "dreamgym.fit_config",
    "OptimizerConfig": "dreamgym.fit_config",
    "World": "dreamgym.world",
    "check": "dreamgym.data",
    "evaluate": "dreamgym.transfer",
    "fit": "dreamgym.fitting",
    "from_lewm": "dreamgym.adopting",
    "from_model": "dreamgym.adopting",
    "load": "dreamgym.world",
    "recommended": "dreamgym.fit_config",
    "record": "dreamgym.data",
    "train_policy": "dreamgym.train.sb3",
    "transfer_policy": "dreamgym.transfer",
}

__all__ = [*_HOMES, "__version__"]

register_worlds()


def __getattr__(name: str) -> Any:
    """Import a public name, or a room of the package, when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in ("data", "models", "dream", "train", "transfer", "trust"):
        return importlib.import_module(f"dreamgym.{name}")
    raise AttributeError(f"module 'dreamgym' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
