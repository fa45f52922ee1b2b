"""Training policies in a dream: one module for each learner library, and the table of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names
from dreamgym.errors import PolicyFileError, TrainingError, TrainingInterrupted

if TYPE_CHECKING:
    from dreamgym.train.cloning import clone_policy
    from dreamgym.train.config import TrainConfig
    from dreamgym.train.monitoring import Monitoring
    from dreamgym.train.policy import PolicyCard, TrainedPolicy, load_policy
    from dreamgym.train.readiness import check
    from dreamgym.train.registry import LEARNERS, Learner, find_learner
    from dreamgym.train.seeds import train_seeds
    from dreamgym.train.training import train_policy

__all__ = [
    "LEARNERS",
    "Learner",
    "Monitoring",
    "PolicyCard",
    "PolicyFileError",
    "TrainConfig",
    "TrainedPolicy",
    "TrainingError",
    "TrainingInterrupted",
    "check",
    "clone_policy",
    "find_learner",
    "load_policy",
    "train_policy",
    "train_seeds",
]


# Learner libraries are extras: each is imported when it is first used.
__getattr__ = lazy_names(
    __name__,
    {
        "cloning": ["clone_policy"],
        "config": ["TrainConfig"],
        "monitoring": ["Monitoring"],
        "policy": ["PolicyCard", "TrainedPolicy", "load_policy"],
        "readiness": ["check"],
        "registry": ["LEARNERS", "Learner", "find_learner"],
        "sb3": [],
        "seeds": ["train_seeds"],
        "training": ["train_policy"],
    },
)
