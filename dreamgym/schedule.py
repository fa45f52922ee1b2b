"""How the learning rate goes over a fit."""

from __future__ import annotations

import math

WARM_UP = 0.1


def learning_rate(peak: float, update: int, updates: int) -> float:
    """Linear warm-up over a tenth of the updates, then a half cosine down to nothing.

    A function of the update alone, so a resumed fit needs no scheduler's state.
    """
    warm = max(1, round(WARM_UP * updates))
    if update < warm:
        return peak * (update + 1) / warm
    done = (update - warm) / max(1, updates - warm)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
