"""Frame skip: several steps of the environment as one, with the actions of all of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]


ActionsOf = Literal["blocks", "repeated"]


_MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: Fibonacci hashing


@dataclass(frozen=True, kw_only=True)
class FrameSkip:
    """How many steps of the environment one step spans, and what its action is.

    Rewards are summed, a step is terminal where one of the environment's steps in it is, and the
    observation is the last one.

    Attributes:
        steps: of the environment, at least 1.
        actions: "blocks", the action is the block of all the actions in it, in their order (LeWM,
            arXiv 2603.19312: a Box of `A` numbers becomes a Box of `steps * A`, a Discrete a
            MultiDiscrete of `steps` choices); or "repeated", the action is a single one that is
            held for all the steps (the action repeat of PlaNet and Dreamer).
    """

    steps: int = 1
    actions: ActionsOf = "blocks"

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(
                f"frame skip: steps={self.steps!r}; give a whole number of at least 1, the steps "
                "of the environment that one step spans"
            )
        if self.actions not in ("blocks", "repeated"):
            raise ValueError(
                f"frame skip: actions={self.actions!r}; give 'blocks' (the action is the block of "
                "all the actions) or 'repeated' (a single action, held)"
            )
        if self.steps == 1:  # both are the same then, and so are the values
            object.__setattr__(self, "actions", "blocks")

    def to_json(self) -> dict[str, Any]:
        """JSON-plain; empty where nothing is skipped."""
        return asdict(self) if self.steps > 1 else {}

    def space(self, action_space: gym.Space[Any]) -> gym.Space[Any]:
        """The action space, given that of the environment: Box, Discrete or MultiDiscrete."""
        if self.steps == 1 or self.actions == "repeated":
            return action_space
        k, space = self.steps, action_space
        if isinstance(space, spaces.Box):
            low, high = (np.tile(bound.reshape(-1), k) for bound in (space.low, space.high))
            return spaces.Box(low, high, dtype=space.dtype.type)
        if isinstance(space, spaces.Discrete):
            return spaces.MultiDiscrete([space.n] * k, start=[space.start] * k)
        if isinstance(space, spaces.MultiDiscrete):
            counts, first = (np.tile(np.ravel(part), k) for part in (space.nvec, space.start))
            return spaces.MultiDiscrete(counts, dtype=space.dtype.type, start=first)
        raise TypeError(f"frames of an environment with actions from {space} cannot be skipped")

    def joined(self, actions: Array, action_space: gym.Space[Any]) -> Array:
        """Actions (..., steps, *shape) of the environment as (..., *shape of `space`)."""
        if self.actions == "repeated":
            return actions.take(0, axis=-1 - len(action_space.shape or ()))
        lead = actions.shape[: actions.ndim - 1 - len(action_space.shape or ())]
        return actions.reshape(*lead, *(self.space(action_space).shape or ()))

    def single(self, action: Any, action_space: gym.Space[Any]) -> list[Any]:
        """The actions of the environment, in their order, that one action stands for.

        Raises:
            ValueError: it has another shape.
        """
        if self.steps == 1 or self.actions == "repeated":
            return [action] * self.steps
        wanted, given = self.space(action_space), np.asarray(action)
        if given.shape != wanted.shape:
            raise ValueError(
                f"the action has shape {given.shape}; give one of {wanted}: {self.steps} actions "
                f"of {action_space}, one after the other"
            )
        rows = given.reshape(self.steps, *(action_space.shape or ()))
        if isinstance(action_space, spaces.Discrete):
            return [action_space.dtype.type(row) for row in rows]
        return list(rows)

    def count(self, steps: int) -> int:
        """How many steps it takes until so many of the environment are over."""
        return -(-steps // self.steps)


def borrowed(missing: Array, lengths: Array | int) -> Array:
    """Steps of an episode whose actions stand in for those after its end.

    A policy gives whole blocks, also where the episode ends within one, and a model must not see
    that it does: zeros, or the last action again, would tell it. Actions from anywhere in the same
    episode do not.

    Args:
        missing: (n,) numbers of steps, at or beyond the length of their episode.
        lengths: (n,) of the episodes, at least 1.

    Returns:
        (n,) numbers of steps in the episodes; the same ones for the same arguments.
    """
    length = np.asarray(lengths)
    mixed = (missing + 7919 * length).astype(np.uint64) * _MIXER
    return (mixed >> np.uint64(33)).astype(np.int64) % length
