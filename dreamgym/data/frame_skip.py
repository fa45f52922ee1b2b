"""Frame skip: one step spans several steps of the environment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data.episodes import reward_to_float

Array = NDArray[Any]
ActionMode = Literal["blocks", "repeated"]

_MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: Fibonacci hashing


@dataclass(frozen=True, kw_only=True)
class FrameSkip:
    """How many environment steps one step spans, and what its action is.

    Rewards are summed, a step is terminal if one of its environment steps is, and the observation
    is the last one.

    Attributes:
        steps: environment steps in one step, at least 1.
        actions: `"blocks"`: the action is the block of all its environment actions, in order (LeWM,
            arXiv 2603.19312): a Box of `A` numbers becomes a Box of `steps * A`, a Discrete a
            MultiDiscrete of `steps` choices. `"repeated"`: the action is a single environment
            action, repeated in every environment step (the action repeat of PlaNet and Dreamer).
    """

    steps: int = 1
    actions: ActionMode = "blocks"

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(
                f"frame skip: got steps={self.steps!r}; expected a whole number of at least 1, the "
                "environment steps that one step spans"
            )
        if self.actions not in ("blocks", "repeated"):
            raise ValueError(
                f"frame skip: got actions={self.actions!r}; expected 'blocks' (the action is the "
                "block of all environment actions) or 'repeated' (one action, repeated)"
            )
        if self.steps == 1:  # both modes are the same then, so the configs compare equal
            object.__setattr__(self, "actions", "blocks")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-plain values; empty without a frame skip."""
        return asdict(self) if self.steps > 1 else {}

    def space(self, action_space: gym.Space[Any]) -> gym.Space[Any]:
        """Return the action space with this frame skip.

        Args:
            action_space: action space of the environment: Box, Discrete or MultiDiscrete.
        """
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
        raise TypeError(
            f"a frame skip does not support the action space {space}; expected Box, Discrete or "
            "MultiDiscrete"
        )

    def join(self, actions: Array, action_space: gym.Space[Any]) -> Array:
        """Join environment actions into actions of `space`: `(..., steps, *shape)` to `(..., *)`.

        Args:
            actions: `(..., steps, *shape)`, the environment actions of each step.
            action_space: action space of the environment, with `shape`.
        """
        if self.actions == "repeated":
            return actions.take(0, axis=-1 - len(action_space.shape or ()))
        lead = actions.shape[: actions.ndim - 1 - len(action_space.shape or ())]
        return actions.reshape(*lead, *(self.space(action_space).shape or ()))

    def split(self, action: Any, action_space: gym.Space[Any]) -> list[Any]:
        """Split one action of `space` into its `steps` environment actions, in order.

        Raises:
            ValueError: the action does not have the shape of `space`.
        """
        if self.steps == 1 or self.actions == "repeated":
            return [action] * self.steps
        space, block = self.space(action_space), np.asarray(action)
        if block.shape != space.shape:
            raise ValueError(
                f"the action has shape {block.shape}; expected one of {space}: {self.steps} "
                f"actions of {action_space}, one after the other"
            )
        rows = block.reshape(self.steps, *(action_space.shape or ()))
        if isinstance(action_space, spaces.Discrete):
            return [action_space.dtype.type(row) for row in rows]
        return list(rows)

    def count(self, steps: int) -> int:
        """Return how many steps it takes to cover `steps` environment steps."""
        return -(-steps // self.steps)


class SkipFrames(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Environment wrapper that takes several environment steps per step.

    It is the real environment of a world with a frame skip. A step is cut short where the
    environment terminates or truncates: a time limit inside counts environment steps. Rewards are
    summed, the observation and the info are the last ones, and `info["env_steps"]` is the number of
    environment steps taken.

    Args:
        env: environment with a Box, Discrete or MultiDiscrete action space.
        steps: environment steps in one step, see `FrameSkip`.
        actions: what the action of a step is, see `FrameSkip`.
    """

    def __init__(self, env: gym.Env[Any, Any], steps: int, actions: ActionMode = "blocks") -> None:
        gym.utils.RecordConstructorArgs.__init__(self, steps=steps, actions=actions)
        gym.Wrapper.__init__(self, env)
        self.frame_skip = FrameSkip(steps=steps, actions=actions)
        self.action_space = self.frame_skip.space(env.action_space)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take the environment steps of one action.

        Raises:
            ValueError: the action has a wrong shape.
        """
        total, taken = 0.0, 0
        for env_action in self.frame_skip.split(action, self.env.action_space):
            observation, reward, terminated, truncated, info = self.env.step(env_action)
            total, taken = total + reward_to_float(reward), taken + 1
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, {**info, "env_steps": taken}


def frame_skip_of(env: Any) -> FrameSkip:
    """Return the frame skip of an environment or of a `SkipFrames` inside its wrappers."""
    while env is not None:
        if isinstance(env, SkipFrames):
            return env.frame_skip
        env = getattr(env, "env", None) if isinstance(env, gym.Wrapper) else None
    return FrameSkip()


def borrowed_steps(missing: Array, lengths: Array | int) -> Array:
    """Choose the steps whose actions replace the missing ones after an episode's end.

    A policy in a dream always gives a whole block of actions, even if the episode ends inside it.
    The training data must therefore not reveal the end: padding with zeros or with the last action
    would, actions from elsewhere in the same episode do not.

    Args:
        missing: `(n,)` step indices, at or beyond the length of their episode.
        lengths: `(n,)` lengths of the episodes, at least 1.

    Returns:
        `(n,)` step indices within the episodes; a pure function of the arguments.
    """
    length = np.asarray(lengths)
    mixed = (missing + 7919 * length).astype(np.uint64) * _MIXER
    return (mixed >> np.uint64(33)).astype(np.int64) % length
