"""Dreams: a world as a Gymnasium environment, single or vectorised.

The wrappers that work on tensors are in `dreamgym.dream.wrappers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names

if TYPE_CHECKING:
    from dreamgym.dream.env import DreamEnv as DreamEnv
    from dreamgym.dream.options import DreamOptions as DreamOptions
    from dreamgym.dream.rollout import Rollout as Rollout
    from dreamgym.dream.state import Dreams as Dreams
    from dreamgym.dream.vector_env import DreamVectorEnv as DreamVectorEnv

__all__ = ["DreamEnv", "DreamOptions", "DreamVectorEnv", "Dreams", "Rollout"]

# Lazy, since `import dreamgym` imports this package for its ids, and must not import torch.
__getattr__ = lazy_names(
    __name__,
    {
        "env": ["DreamEnv"],
        "options": ["DreamOptions"],
        "rollout": ["Rollout"],
        "state": ["Dreams"],
        "vector_env": ["DreamVectorEnv"],
        "wrappers": [],
    },
)
