"""One episode of real experience, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Observations = Array | dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One unbroken stretch of experience: `T` actions and `T + 1` observations.

    Attributes:
        observations: `(T + 1, *shape)` in the space's units and dtype, or a dict of such by key.
        actions: `(T, ...)`; row `t` is the action that leaves observation `t`. Discrete: int64.
        rewards: `(T,)` float32; row `t` is the reward for action `t`.
        terminated: The last observation is terminal.
        truncated: Something outside the task (a time limit) ended the episode.
        complete: The environment itself ended the episode. An episode that is neither terminated
            nor truncated was cut off (early reset, end of the recording) and is not complete.
        seed: The seed its reset was given, `None` where it was given none.
        env_index: Which of several environments, side by side, it came from.
    """

    observations: Observations
    actions: Array
    rewards: Array
    terminated: bool
    truncated: bool
    complete: bool
    seed: int | None = None
    env_index: int = 0

    @property
    def length(self) -> int:
        """`T`, the number of actions."""
        return len(self.actions)

    def __len__(self) -> int:
        return self.length
