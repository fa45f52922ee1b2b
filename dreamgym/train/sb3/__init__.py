"""Stable-Baselines3 in the dream: the adapter, the training of a policy, and its file.

The functions of `dreamgym.train.registry.LearnerLibrary` are here under their names.
"""

from __future__ import annotations

from dreamgym.train.registry import LEARNERS

LEARNERS["sb3"].require_installed()

from dreamgym.train.sb3.actor import actor  # noqa: E402 - the library comes first
from dreamgym.train.sb3.algorithms import ALGORITHMS, unsupported  # noqa: E402
from dreamgym.train.sb3.callbacks import (  # noqa: E402
    AlarmCallback,
    BatchedTruncationValues,
    LearningCurve,
)
from dreamgym.train.sb3.policy_file import load, save  # noqa: E402
from dreamgym.train.sb3.training import check, train  # noqa: E402
from dreamgym.train.sb3.values import values  # noqa: E402
from dreamgym.train.sb3.vec_env import SB3VecEnv  # noqa: E402

adapter = SB3VecEnv

__all__ = [
    "ALGORITHMS",
    "AlarmCallback",
    "BatchedTruncationValues",
    "LearningCurve",
    "SB3VecEnv",
    "actor",
    "adapter",
    "check",
    "load",
    "save",
    "train",
    "unsupported",
    "values",
]
