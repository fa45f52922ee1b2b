"""Training policies in a dream: one thin file for each learner library."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamgym.train.config import TrainConfig
    from dreamgym.train.errors import PolicyFileError, TrainingError, TrainingInterrupted
    from dreamgym.train.policy import PolicyCard, TrainedPolicy
    from dreamgym.train.sb3.policy_file import load_policy, with_zip_suffix
    from dreamgym.train.sb3.training import train_policy

_PLACES = {
    "PolicyCard": "dreamgym.train.policy",
    "PolicyFileError": "dreamgym.train.errors",
    "TrainConfig": "dreamgym.train.config",
    "TrainedPolicy": "dreamgym.train.policy",
    "TrainingError": "dreamgym.train.errors",
    "TrainingInterrupted": "dreamgym.train.errors",
    "load_policy": "dreamgym.train.sb3.policy_file",
    "train_policy": "dreamgym.train.sb3.training",
    "with_zip_suffix": "dreamgym.train.sb3.policy_file",
}

__all__ = [
    "PolicyCard",
    "PolicyFileError",
    "TrainConfig",
    "TrainedPolicy",
    "TrainingError",
    "TrainingInterrupted",
    "load_policy",
    "train_policy",
    "with_zip_suffix",
]


def __getattr__(name: str) -> Any:
    # the learner libraries are extras: they are imported when something of theirs is asked for
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
