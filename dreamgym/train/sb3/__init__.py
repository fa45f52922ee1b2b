"""Stable-Baselines3 in the dream: the adapter, the training of a policy, and its file."""

from __future__ import annotations

try:
    import stable_baselines3 as _stable_baselines3
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "dreamgym.train.sb3 needs Stable-Baselines3, and "
        f"{error.name} is not installed: pip install 'dreamgym[sb3]'",
        name=error.name,
    ) from None

from dreamgym.train.sb3.algorithms import ALGORITHMS
from dreamgym.train.sb3.callbacks import BatchedTruncationValues, LearningCurve
from dreamgym.train.sb3.policy_file import load_policy, with_zip_suffix
from dreamgym.train.sb3.training import train_policy
from dreamgym.train.sb3.vec_env import SB3VecEnv

__all__ = [
    "ALGORITHMS",
    "BatchedTruncationValues",
    "LearningCurve",
    "SB3VecEnv",
    "load_policy",
    "train_policy",
    "with_zip_suffix",
]

del _stable_baselines3
