"""How the learning rate goes over a fit."""

from __future__ import annotations

import math

from dreamgym.fit_config import OptimizerConfig


def learning_rate(
    config: OptimizerConfig, update: int, updates: int, turns: tuple[int, ...] = ()
) -> float:
    """Linear warm-up to the peak, then a half cosine down to nothing, or the peak for good.

    A function of the update alone, so a resumed fit needs no scheduler's state.

    Args:
        config: the peak, the kind of schedule and the warm-up.
        update: updates done before.
        updates: in all.
        turns: where another part's turn comes, rising: the schedule begins anew there, so that
            every part's last updates are small ones.
    """
    edges = [0, *(turn for turn in turns if 0 < turn < updates), updates]
    begin = max(edge for edge in edges[:-1] if edge <= update)
    end = min(edge for edge in edges[1:] if edge > begin)
    return _one_turn(config, update - begin, end - begin)


def _one_turn(config: OptimizerConfig, update: int, updates: int) -> float:
    share = config.warm_up < 1
    warm = round(config.warm_up * updates if share else config.warm_up)
    warm = max(1 if config.warm_up else 0, warm)
    if update < warm:
        return config.learning_rate * (update + 1) / warm
    if config.schedule == "constant":
        return config.learning_rate
    done = (update - warm) / max(1, updates - warm)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
