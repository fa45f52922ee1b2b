"""CMA-ES in the dream: evolution of a small controller, with the `cma` package.

The functions of `dreamgym.train.registry.LearnerLibrary` are here under their names.
"""

from __future__ import annotations

from typing import Any

from dreamgym.train.registry import LEARNERS

LEARNERS["cma"].require_installed()

from dreamgym.train.cma.controller import Controller  # noqa: E402 - the library comes first
from dreamgym.train.cma.evolution import Evolution, EvolutionConfig, check, train, unsupported  # noqa: E402
from dreamgym.train.cma.policy_file import actor, load, save  # noqa: E402

__all__ = [
    "Controller",
    "Evolution",
    "EvolutionConfig",
    "actor",
    "adapter",
    "check",
    "load",
    "save",
    "train",
    "unsupported",
]


def adapter(env: Any, **options: Any) -> Any:
    """Return the environment as it is: evolution steps it with tensors."""
    return env
