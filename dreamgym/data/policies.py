"""Who chooses the actions while recording."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

DEFAULT_STICKINESS = 0.8


@runtime_checkable
class Policy(Protocol):
    """Chooses actions, and starts afresh at each episode."""

    name: str

    def begin(self, seed: int) -> None:
        """Forget the last episode and seed everything random."""
        ...

    def act(self, observation: Any) -> Any:
        """The action for an observation."""
        ...


class RandomPolicy:
    """Actions drawn from the action space."""

    name = "random"

    def __init__(self, action_space: gym.Space[Any]) -> None:
        self._space = copy.deepcopy(action_space)

    def begin(self, seed: int) -> None:
        """See `Policy.begin`."""
        self._space.seed(seed)

    def act(self, observation: Any) -> Any:
        """A random action."""
        return self._space.sample()


class StickyRandomPolicy:
    """Random actions that last: each is repeated with a probability, else drawn anew.

    Plain random actions cancel out before a sluggish system has moved; lasting ones reach further.

    Args:
        action_space: Where the actions come from.
        stickiness: Probability of repeating the last action, in [0, 1).
    """

    def __init__(self, action_space: gym.Space[Any], stickiness: float) -> None:
        if not 0.0 <= stickiness < 1.0:
            raise ValueError(
                f"the stickiness is {stickiness}; it must be at least 0 and below 1, as in "
                "'sticky:0.8'"
            )
        self.name = f"sticky:{stickiness:g}"
        self._space = copy.deepcopy(action_space)
        self._stickiness = stickiness
        self._rng = np.random.default_rng(0)
        self._last: Any = None

    def begin(self, seed: int) -> None:
        """See `Policy.begin`."""
        self._space.seed(seed)
        self._rng = np.random.default_rng([seed, 1])
        self._last = None

    def act(self, observation: Any) -> Any:
        """The last action again, or a random one."""
        if self._last is None or self._rng.random() >= self._stickiness:
            self._last = self._space.sample()
        return self._last


class HeldRandomPolicy:
    """Random actions, each held for a number of steps: what a frame skip that repeats them reads.

    Args:
        action_space: Where the actions come from.
        steps: For which an action is held, at least 1.
    """

    def __init__(self, action_space: gym.Space[Any], steps: int) -> None:
        if steps < 1:
            raise ValueError(f"actions are held for {steps} steps; give at least 1, as 'held:4'")
        self.name = f"held:{steps}"
        self._space = copy.deepcopy(action_space)
        self._steps, self._taken = steps, 0
        self._last: Any = None

    def begin(self, seed: int) -> None:
        """See `Policy.begin`."""
        self._space.seed(seed)
        self._taken = 0

    def act(self, observation: Any) -> Any:
        """The last action again, or after enough steps a random one."""
        if self._taken % self._steps == 0:
            self._last = self._space.sample()
        self._taken += 1
        return self._last


class CallablePolicy:
    """A function of the observation. It is not seeded: what it draws is its own affair."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.name = f"callable:{getattr(function, '__qualname__', type(function).__qualname__)}"
        self._function = function

    def begin(self, seed: int) -> None:
        """See `Policy.begin`."""

    def act(self, observation: Any) -> Any:
        """What the function says."""
        return self._function(observation)


PolicyLike = str | Callable[[Any], Any] | Policy


def make_policy(policy: PolicyLike, action_space: gym.Space[Any]) -> Policy:
    """The policy that a user named.

    Args:
        policy: `"random"`; `"sticky-random"`, or `"sticky:P"` with the probability of repeating the
            last action; `"held:N"`, random actions that last for N steps; a function from an
            observation to an action; or a `Policy`.
        action_space: Where random actions come from.

    Raises:
        ValueError: There is no such policy.
    """
    if isinstance(policy, Policy):
        return policy
    if callable(policy):
        return CallablePolicy(policy)
    if policy == "random":
        return RandomPolicy(action_space)
    if policy in ("sticky-random", "sticky"):
        return StickyRandomPolicy(action_space, DEFAULT_STICKINESS)
    name, _, value = str(policy).partition(":")
    if name in ("sticky", "sticky-random"):
        try:
            stickiness = float(value)
        except ValueError:
            raise ValueError(f"{policy!r} has no number after the colon, as 'sticky:0.8'") from None
        return StickyRandomPolicy(action_space, stickiness)
    if name == "held":
        if not value.isdecimal():
            raise ValueError(f"{policy!r} has no whole number after the colon, as 'held:4'")
        return HeldRandomPolicy(action_space, int(value))
    raise ValueError(
        f"there is no policy {policy!r}; use 'random', 'sticky-random', 'sticky:0.8' (the "
        "probability of repeating an action), 'held:4' (the steps for which one is held), or a "
        "function from an observation to an action"
    )
