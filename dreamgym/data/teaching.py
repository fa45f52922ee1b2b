"""What a dataset cannot teach: rewards, ends and actions without the variation to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data.storage import Source

Array = NDArray[Any]

MIN_EVENTS = 10
"""Minimum number of rewards or terminations that can be learnt, where most steps have none."""

RARE_SHARE = 0.01
"""Largest share of steps with another reward than the most frequent one where such are rare."""

MIN_LIMIT = 5
"""Shorter episodes are not suspected of ending at a time limit."""

LIMIT_SHARE = 0.25
"""Minimum share of the terminated episodes that have the longest length, for that suspicion."""

_LISTED = 8


class Lessons(NamedTuple):
    """Rewards, actions and ends of a dataset of N transitions in E episodes.

    Attributes:
        rewards: (N,) rewards.
        actions: (N, ...) actions.
        lengths: (E,) transitions in each episode.
        terminated: (E,) bool, whether the episode terminated.
        action_space: space of the actions.
    """

    rewards: Array
    actions: Array
    lengths: Array
    terminated: Array
    action_space: gym.Space[Any]

    @classmethod
    def of_source(cls, source: Source) -> Lessons:
        """Return those of a dataset."""
        table = source.table
        rewards, actions = (
            column.read(0, table.num_rows)[table.has_action]
            for column in (source.reward, source.action)
        )
        return cls(
            rewards,
            actions,
            np.asarray(table.length),
            np.asarray(table.terminated, bool),
            source.metadata.action_space,
        )


def teaching_findings(lessons: Sequence[Lessons]) -> list[str]:
    """Return what a model cannot learn from one or several datasets, and what to record instead.

    Args:
        lessons: the datasets that a model is fitted to, all with the same action space.
    """
    rewards, actions, lengths, terminated = (
        np.concatenate([each[leaf] for each in lessons]) for leaf in range(4)
    )
    if not len(rewards):
        return []
    return [
        *_reward_findings(rewards),
        *_termination_findings(lengths, terminated),
        *_action_findings(actions.reshape(len(actions), -1), lessons[0].action_space),
    ]


def _reward_findings(rewards: Array) -> list[str]:
    values, counts = np.unique(rewards[np.isfinite(rewards)], return_counts=True)
    if not len(values):
        return []
    usual, rest = values[counts.argmax()] + 0.0, int(counts.sum() - counts.max())
    if not rest:
        return [
            f"the rewards are all {usual:g}, so the data cannot teach what changes them: record "
            "episodes that reach other rewards, with another policy or for longer, or give the "
            "reward as a function (KnownReward)"
        ]
    if rest < MIN_EVENTS and rest <= RARE_SHARE * len(rewards):
        return [
            f"{rest} of {len(rewards):,} rewards differ from {usual:g}, too few to teach the "
            "reward: record episodes that reach other rewards, with a better or a sticky policy "
            "(--policy sticky:0.9), or give the reward as a function (KnownReward)"
        ]
    return []


def _termination_findings(lengths: Array, terminated: Array) -> list[str]:
    count, episodes, steps = int(terminated.sum()), len(lengths), int(lengths.sum())
    if not count:
        return []
    longest = int(lengths.max())
    at_limit = terminated & (lengths == longest)
    suspected = int(at_limit.sum())
    if (
        longest >= MIN_LIMIT
        and suspected >= MIN_EVENTS
        and suspected >= LIMIT_SHARE * count
        and not (~terminated & (lengths >= longest)).any()
    ):
        which = "all" if suspected == count else f"{suspected} of {count}"
        return [
            f"{which} terminated episodes end at the same step, {longest}, as if a time limit were "
            "recorded as a termination: dreams would end there, and a policy would learn that "
            "nothing follows. If it is a time limit, return it as truncated and record again (for "
            "other formats give terminals='boundary')"
        ]
    if count < MIN_EVENTS and count < episodes / 2 and count <= RARE_SHARE * steps:
        verb = "terminates" if count == 1 else "terminate"
        return [
            f"{count} of {episodes} episodes {verb} (in {steps:,} steps), too few to teach "
            "where episodes end, so dreams hardly will: record episodes that terminate, with a "
            "better or a sticky policy (--policy sticky:0.9), or give the termination as a "
            "function (KnownTermination)"
        ]
    return []


def _action_findings(actions: Array, space: gym.Space[Any]) -> list[str]:
    if len(actions) < 2:
        return []
    free = _has_choice(space)
    constant = np.flatnonzero((actions == actions[:1]).all(0) & free)
    if not len(constant):
        return _unused_actions(actions, space)
    if len(constant) == int(free.sum()):
        which = f"the actions are all {actions[0].tolist()}"
    else:
        listed = ", ".join(map(str, constant[:_LISTED].tolist()))
        more = ", ..." if len(constant) > _LISTED else ""
        which = f"the numbers {listed}{more} of the actions never change"
    return [
        f"{which}, so the data cannot teach what they do: record with a policy that varies them "
        "(--policy random)"
    ]


def _has_choice(space: gym.Space[Any]) -> Array:
    """Return which numbers of an action can have more than one value, (n,) bool."""
    if isinstance(space, spaces.Box):
        return np.asarray(space.high > space.low).reshape(-1)
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(space.nvec > 1).reshape(-1)
    return np.array([isinstance(space, spaces.Discrete) and space.n > 1])


def _unused_actions(actions: Array, space: gym.Space[Any]) -> list[str]:
    """Return a finding if some values of a small Discrete space are never taken."""
    if not isinstance(space, spaces.Discrete) or MIN_EVENTS * int(space.n) > len(actions):
        return []
    unused = np.setdiff1d(int(space.start) + np.arange(int(space.n)), actions)
    if not len(unused):
        return []
    more = ", ..." if len(unused) > _LISTED else ""
    listed = ", ".join(map(str, unused[:_LISTED].tolist())) + more
    return [
        f"the actions {listed} of {space} are never taken, so the data cannot teach what they do: "
        "record with a policy that takes them (--policy random)"
    ]
