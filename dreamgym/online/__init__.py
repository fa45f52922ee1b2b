"""The online loop: record, refit, train in the dream, measure, and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names

if TYPE_CHECKING:
    from dreamgym.online.config import PRESETS, Branches, ImproveConfig, improve_preset
    from dreamgym.online.exploration import NoisyPolicy
    from dreamgym.online.loop import Improvement, improve
    from dreamgym.online.parallel import LatestPolicy, act, learn

__all__ = [
    "PRESETS",
    "Branches",
    "ImproveConfig",
    "Improvement",
    "LatestPolicy",
    "NoisyPolicy",
    "act",
    "improve",
    "improve_preset",
    "learn",
]

# The command line's options are made from the config, and must not import torch.
__getattr__ = lazy_names(
    __name__,
    {
        "config": ["PRESETS", "Branches", "ImproveConfig", "improve_preset"],
        "exploration": ["NoisyPolicy"],
        "loop": ["Improvement", "improve"],
        "parallel": ["LatestPolicy", "act", "learn"],
    },
)
