"""Dreams: a world as a Gymnasium environment, single or vectorised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names

if TYPE_CHECKING:
    from dreamgym.dream.env import DreamEnv as DreamEnv
    from dreamgym.dream.vector_env import DreamVectorEnv as DreamVectorEnv

__all__ = ["DreamEnv", "DreamVectorEnv"]

# The registration of ids is imported with dreamgym; torch only with an environment.
__getattr__ = lazy_names(__name__, {"env": ["DreamEnv"], "vector_env": ["DreamVectorEnv"]})
