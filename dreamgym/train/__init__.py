"""Training policies in a dream: one thin file for each learner library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names
from dreamgym.errors import PolicyFileError, TrainingError, TrainingInterrupted

if TYPE_CHECKING:
    from dreamgym.train.config import TrainConfig
    from dreamgym.train.policy import PolicyCard, TrainedPolicy
    from dreamgym.train.sb3.policy_file import load_policy, with_zip_suffix
    from dreamgym.train.sb3.training import train_policy

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


# Learner libraries are extras: each is imported when something of it is asked for.
__getattr__ = lazy_names(
    __name__,
    {
        "config": ["TrainConfig"],
        "policy": ["PolicyCard", "TrainedPolicy"],
        "sb3": ["load_policy", "train_policy", "with_zip_suffix"],
    },
)
